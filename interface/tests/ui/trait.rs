#[enclos::interface]
pub trait Generic<T> {
    fn put(&self, value: T);
}

#[enclos::interface]
pub trait Empty {}

#[enclos::interface]
pub trait Members {
    type Key;
    const LIMIT: usize;
    fn put(&self);
}

fn main() {}

#[enclos::interface]
pub trait Methods {
    async fn later(&self) -> u32;
    fn change(&mut self);
    fn consume(self);
    fn free(value: u32);
    fn body(&self) -> u32 {
        1
    }
    fn generic<T>(&self, value: T);
    unsafe fn danger(&self);
    fn connect(&self);
    #[cfg(unix)]
    fn sometimes(&self);
}

fn main() {}

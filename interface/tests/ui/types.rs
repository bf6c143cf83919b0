#[enclos::interface]
pub trait Types {
    fn write(&self, into: &mut Vec<u8>);
    fn pointer(&self, at: *const u8);
    fn object(&self, what: Box<dyn Fn()>);
    fn opaque(&self, what: impl Into<String>);
    fn unsized_text(&self, what: str);
    fn borrowed_result(&self) -> &str;
    fn nested(&self, what: Option<&u32>);
    fn own(&self, what: Self);
    fn alias(&self) -> std::io::Result<u32>;
}

fn main() {}

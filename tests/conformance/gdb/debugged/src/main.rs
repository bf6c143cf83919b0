//! What gdb is to find its way in: a thread, locals, Linux calls, and the ways to end badly.

#[inline(never)]
fn third_power(number: u64) -> u64 {
    let square = number * number;
    println!("{square}");
    square * number
}

#[inline(never)]
fn poke(address: usize) {
    // SAFETY: none: this is the fault that is to be reported.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    println!("not reached");
}

#[inline(never)]
fn give_up() {
    println!("giving up");
    std::process::abort();
}

fn main() {
    let worker = std::thread::spawn(|| third_power(7));
    println!("{}", worker.join().unwrap());
    match std::env::args().nth(1).as_deref() {
        Some("poke") => poke(8),
        Some("abort") => give_up(),
        _ => {}
    }
}

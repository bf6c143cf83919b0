//! The host program: starts the enclave and calls it.

use std::error::Error;
use std::time::Duration;

use {{ident}}_contract::GreeterClient;

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "world".into());
    let enclave = {{ident}}_host::start()?;
    let greeter = enclave.connect::<GreeterClient<_>>()?;
    println!("{}", greeter.greet(&name)?);

    let sealed = greeter.seal_note("nobody else can read this")?;
    println!("A note, sealed to {} bytes; unsealed inside: {:?}", sealed.len(), greeter.read_note(&sealed)?);

    enclave.shutdown(Duration::from_secs(5))?;
    Ok(())
}

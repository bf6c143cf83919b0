//! The enclave that the host's tests run.

mod vectors;

use std::io::Write as _;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use enclos_enclave::{HostTransport, LogLevel, Policy, Server, Untrusted};
use enclos_test_guest::*;

#[derive(Default)]
struct Program {
    inside: Mutex<u32>,
    changed: Condvar,
}

fn oracle() -> Result<OracleClient<HostTransport>, String> {
    enclos_enclave::host::<OracleClient<_>>().map_err(|e| e.to_string())
}

impl Guest for Program {
    fn nothing(&self) {}

    fn add(&self, a: u64, b: u64) -> u64 {
        a.wrapping_add(b)
    }

    fn echo(&self, data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    fn refuse(&self, text: &str) -> Result<u32, Refused> {
        Err(Refused(text.into()))
    }

    fn panic(&self, text: &str) {
        panic!("{text}");
    }

    fn large(&self, len: u64) -> Vec<u8> {
        (0..len).map(|i| i as u8).collect()
    }

    fn meet(&self, count: u32) {
        let mut inside = self.inside.lock().unwrap();
        *inside += 1;
        self.changed.notify_all();
        while *inside < count {
            inside = self.changed.wait(inside).unwrap();
        }
    }

    fn sleep(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    fn spin(&self) {
        loop {
            std::hint::spin_loop();
        }
    }

    fn block(&self) {
        let mutex = Mutex::new(());
        let guard = mutex.lock().unwrap();
        drop(Condvar::new().wait_while(guard, |()| true));
    }

    fn crash(&self) {
        // SAFETY: none: this is the fault that the host must survive.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
    }

    fn exit(&self, status: i32) {
        std::process::exit(status);
    }

    fn down(&self, depth: u32) -> Result<u32, String> {
        match depth {
            0 => Ok(0),
            depth => match oracle()?.down(depth - 1) {
                Ok(below) => Ok(below + 1),
                Err(e) => Err(e.to_string()),
            },
        }
    }

    fn host_echo(&self, data: &[u8]) -> Result<Vec<u8>, String> {
        oracle()?.echo(data).map_err(|e| e.to_string())
    }

    fn host_panic(&self) -> String {
        match oracle() {
            Ok(oracle) => oracle.panic("host gone wrong").unwrap_err().to_string(),
            Err(e) => e,
        }
    }

    fn host_nothing(&self, times: u32) -> Result<(), String> {
        let oracle = oracle()?;
        for _ in 0..times {
            oracle.nothing().map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn unlisted(&self) -> String {
        enclos_enclave::host::<UnlistedClient<_>>().unwrap_err().to_string()
    }

    fn unserved(&self) -> String {
        enclos_enclave::host::<UnservedClient<_>>().unwrap_err().to_string()
    }

    fn say(&self, text: &str) {
        println!("{text}");
        enclos_enclave::log(LogLevel::Warn, text);
    }

    fn seal(&self, to_signer: bool, associated: &[u8], data: &[u8]) -> Result<Vec<u8>, String> {
        let policy = if to_signer { Policy::Signer } else { Policy::Image };
        enclos_enclave::seal(policy, associated, data).map_err(|e| format!("{e:?}"))
    }

    fn unseal(&self, associated: &[u8], data: &[u8]) -> Result<Vec<u8>, String> {
        enclos_enclave::unseal(associated, data).map_err(|e| format!("{e:?}"))
    }

    fn identity(&self) -> ([u8; 32], [u8; 32], u16, u16) {
        let i = enclos_enclave::identity().unwrap();
        (i.mrenclave, i.mrsigner, i.product_id, i.security_version)
    }

    fn random(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        enclos_enclave::random(&mut bytes).unwrap();
        bytes
    }

    fn attest(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String> {
        enclos_enclave::attest(report_data).map(|e| e.into_quote()).map_err(|e| e.to_string())
    }

    fn is_emulated_alleged(&self) -> bool {
        enclos_enclave::is_emulated_alleged().unwrap()
    }

    fn round_otherwise(&self) {
        let (mxcsr, control) = (0x7f80_u32, 0xf7f_u16);
        // SAFETY: loads both from the stack; this function computes nothing with floating point.
        unsafe { std::arch::asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &mxcsr, in(reg) &control) };
    }

    fn pointers(&self) -> Vec<String> {
        let inside = std::ptr::from_ref(self) as u64;
        let cases = [
            (inside, 1),
            (inside - (1 << 40), 1 << 41),
            (u64::MAX, 2),
            (0, 1),
            (inside - (1 << 40), u64::MAX),
        ];
        cases
            .iter()
            .filter_map(|(at, len)| Untrusted::claim(*at, *len).ok())
            .map(|u| format!("{u:?}"))
            .collect()
    }

    fn keep(&self, path: &str, data: &[u8]) -> Result<(), String> {
        let write = || {
            let mut file = std::fs::File::create(path)?;
            file.write_all(data)?;
            file.sync_all()
        };
        write().map_err(|e: std::io::Error| e.to_string())
    }

    fn listen(&self, address: &str) -> Result<(), String> {
        std::mem::forget(std::net::TcpListener::bind(address).map_err(|e| e.to_string())?);
        Ok(())
    }

    fn sealed_state(&self, path: &str) -> Result<([u8; 16], u64, Vec<u8>), i32> {
        let state = enclos_enclave::sealed_state(path).map_err(|e| e.raw_os_error().unwrap_or(0))?;
        Ok((state.volume, state.generation, state.digest.to_vec()))
    }

    fn processor(&self) -> Processor {
        vectors::processor()
    }

    fn keep_vectors(&self, rounds: u64, call: Call) -> Result<(u64, i64), String> {
        vectors::keep(rounds, &call).map_err(|e| e.to_string())
    }

    fn dot(&self, a: &[i32], b: &[i32]) -> Option<i64> {
        // SAFETY: AVX-512 is there.
        is_x86_feature_detected!("avx512f").then(|| unsafe { vectors::dot(a, b) })
    }

    fn contents(&self, path: &str) -> Result<Vec<u8>, String> {
        std::fs::read(path).map_err(|e| e.to_string())
    }
}

struct Name;

impl Second for Name {
    #[cfg(not(feature = "other"))]
    fn name(&self) -> String {
        "second".into()
    }

    #[cfg(feature = "other")]
    fn name(&self) -> Vec<String> {
        vec!["other".into()]
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(status) = std::env::args().nth(1) {
        println!("status {status}, greeting {:?}", std::env::var("GREETING").ok());
        std::process::exit(status.parse()?);
    }
    Server::new().contract(GuestServer::new(Program::default())).contract(SecondServer::new(Name)).run()?;
    println!("no more calls");
    Ok(())
}

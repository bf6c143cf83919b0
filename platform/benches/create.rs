//! Create and initialise an image of 5 MB, against SHA-256 of the bytes that are measured. Prints one JSON object a
//! figure: name, unit, median, min, max, baseline name, baseline median, ratio.

#![allow(missing_docs, reason = "a program")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::{key, machine, sign};
use enclos_platform::emulator::Emulator;
use enclos_platform::emulator::enclave::EnclaveState;
use enclos_platform::{Build, CreateParams, Initialized, Pages, Platform};
use sgx_isa::{Attributes, AttributesFlags, Miscselect, PageType, Secinfo, SecinfoFlags, Secs};
use sha2::{Digest, Sha256};

const MEASURED_PAGES: u64 = 1280;
const HEAP_PAGES: u64 = 4096;
const SIZE: u64 = 64 << 20;

fn main() {
    let machine = machine();
    let emulator = Emulator::on(machine.clone());
    let attributes = Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 };
    let image: Vec<u8> = (0..MEASURED_PAGES * 4096).map(|i| ((i * 7) >> 3) as u8).collect();
    let rw = SecinfoFlags::R | SecinfoFlags::W | PageType::Reg.into();
    let rx = SecinfoFlags::R | SecinfoFlags::X | PageType::Reg.into();
    // Code, data, and a heap whose contents are not measured.
    let half = MEASURED_PAGES / 2;
    let (code, data) = image.split_at(half as usize * 4096);
    let pages = [
        Pages { offset: 0, data: Some(code), count: half, secinfo: rx, measured: true },
        Pages { offset: half * 4096, data: Some(data), count: half, secinfo: rw, measured: true },
        Pages { offset: MEASURED_PAGES * 4096, data: None, count: HEAP_PAGES, secinfo: rw, measured: false },
    ];
    let params = CreateParams { size: SIZE, ssa_frame_size: 1, miscselect: Miscselect::empty(), attributes };

    // The same pages through the leaf functions one by one give the measurement to sign.
    let secs = Secs { size: SIZE, ssaframesize: 1, attributes, ..Secs::default() };
    let mut state = EnclaveState::ecreate(machine, &secs).unwrap();
    for run in &pages {
        for i in 0..run.count {
            let offset = run.offset + i * 4096;
            let mut page = [0; 4096];
            if let Some(data) = run.data {
                page.copy_from_slice(&data[i as usize * 4096..][..4096]);
            }
            let secinfo = Secinfo { flags: run.secinfo, ..Secinfo::default() };
            state.eadd(offset, &secinfo, &mut page).unwrap();
            if run.measured {
                for (j, chunk) in page.as_chunks::<256>().0.iter().enumerate() {
                    state.eextend(offset + j as u64 * 256, chunk).unwrap();
                }
            }
        }
    }
    let sigstruct = sign(common::unsigned(&state), key("signer"));
    drop(state);

    // What MRENCLAVE is the hash of: 64 bytes a page, and 16 times 64 + 256 bytes a measured page.
    let stream = vec![0x5a; (64 * (1 + MEASURED_PAGES + HEAP_PAGES) + MEASURED_PAGES * 16 * 320) as usize];
    let hash = sample(|| {
        black_box(Sha256::digest(black_box(&stream)));
    });
    let create = sample(|| {
        let mut build: Box<dyn Build> = emulator.create(&params).unwrap();
        for run in &pages {
            build.add(run).unwrap();
        }
        let enclave: std::sync::Arc<dyn Initialized> = build.init(&sigstruct).unwrap();
        black_box(enclave);
    });
    println!(
        "{{\"name\":\"create and init, {} KiB measured\",\"unit\":\"us\",\"median\":{:.1},\"min\":{:.1},\"max\":{:.1},\
         \"baseline\":\"SHA-256 of the measured stream\",\"baseline_median\":{:.1},\"ratio\":{:.2}}}",
        MEASURED_PAGES * 4,
        create[1],
        create[0],
        create[2],
        hash[1],
        create[1] / hash[1],
    );
}

/// Minimum, median and maximum of 41 runs, in microseconds of this thread's processor time: others use the machine.
fn sample(mut run: impl FnMut()) -> [f64; 3] {
    let mut times: Vec<f64> = (0..41)
        .map(|_| {
            let start = processor_time();
            run();
            (processor_time() - start) * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [times[0], times[20], times[40]]
}

fn processor_time() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

//! Asks for memory until it is refused, checks what it gets, gives it back, and asks again. Says what happened; a refusal
//! is no failure.

use std::thread;

const PIECE: usize = 1 << 20;

/// Pieces of memory, as many as `most` or as there are. Each is zero at first, and keeps what is written.
fn fill(most: usize) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    while pieces.len() < most {
        let mut piece: Vec<u8> = Vec::new();
        if piece.try_reserve_exact(PIECE).is_err() {
            break;
        }
        piece.resize(PIECE, 0);
        let n = pieces.len() as u8;
        piece.iter_mut().step_by(512).for_each(|b| *b = n);
        pieces.push(piece);
    }
    for (n, piece) in pieces.iter().enumerate() {
        let is_whole = piece.iter().enumerate().all(|(i, b)| *b == if i % 512 == 0 { n as u8 } else { 0 });
        if !is_whole {
            println!("corrupt: piece {n}");
        }
    }
    pieces
}

fn main() {
    let most = std::env::args().nth(1).map_or(64, |a| a.parse().unwrap());
    for round in 0..3 {
        let pieces = fill(most);
        let what = if pieces.len() < most { "refused" } else { "all" };
        println!("round {round}: {what} {}", pieces.len());
    }
    let small = vec![7_u8; 1000];
    let threads: Vec<_> = (0..2_u64)
        .filter_map(|i| thread::Builder::new().stack_size(256 << 10).spawn(move || i + 1).ok())
        .map(|t| t.join().unwrap())
        .collect();
    println!("threads {threads:?} small {}", small.iter().map(|b| u64::from(*b)).sum::<u64>());
}

//! What `cargo bench -p example-sqlite` measures, inside and outside: inserts in transactions that are made durable, and
//! selects from a database that does not fit SQLite's cache.

use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, Result, params};

const TRANSACTIONS: i64 = 20;
const ROWS: i64 = 1000;
const SELECTS: i64 = 20_000;

/// Nanoseconds a row.
pub(crate) struct Times {
    pub(crate) insert: u64,
    pub(crate) select: u64,
}

/// Makes a database in the folder, measures, and removes it.
pub(crate) fn run(folder: &Path) -> Result<Times> {
    let path = folder.join("bench.sqlite");
    let _ = std::fs::remove_file(&path);
    let mut database = Connection::open(&path)?;
    // A quarter of the database: most selects read from the file system.
    database.execute_batch(
        "PRAGMA cache_size = -512; CREATE TABLE reading (id INTEGER PRIMARY KEY, sensor TEXT, value BLOB)",
    )?;
    let value = [0x5a_u8; 100];
    let started = Instant::now();
    for transaction in 0..TRANSACTIONS {
        let insertion = database.transaction()?;
        {
            let mut insert = insertion.prepare("INSERT INTO reading (sensor, value) VALUES (?1, ?2)")?;
            for i in 0..ROWS {
                insert.execute(params![format!("sensor-{}", (transaction + i) % 7), value])?;
            }
        }
        insertion.commit()?;
    }
    let insert = started.elapsed().as_nanos() as u64 / (TRANSACTIONS * ROWS) as u64;
    let mut query = database.prepare("SELECT length(value) FROM reading WHERE id = ?1")?;
    let (mut sum, mut id) = (0, 1);
    let started = Instant::now();
    for _ in 0..SELECTS {
        id = (id * 7919 + 17) % (TRANSACTIONS * ROWS);
        sum += query.query_row([id + 1], |r| r.get::<_, i64>(0))?;
    }
    let select = started.elapsed().as_nanos() as u64 / SELECTS as u64;
    assert_eq!(sum, SELECTS * value.len() as i64);
    drop(query);
    drop(database);
    let _ = std::fs::remove_file(&path);
    Ok(Times { insert, select })
}

//! SQLite on files: the same program outside, and inside an enclave, where they are sealed and there again next time.
//!
//! `enclos run examples/sqlite`, twice; `cargo run -p example-sqlite -- FILE` outside.
#![forbid(unsafe_code)]

mod workload;

use std::path::PathBuf;

use rusqlite::{Connection, Result, params};

/// Where the database lies inside: sealed files of the manifest.
const PATH: &str = "/data/readings.sqlite";
const ROWS: i64 = 20_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("--bench") {
        let folder = PathBuf::from(arguments.next().unwrap_or_default());
        return workload::run(&folder).map(|times| println!("{} {}", times.insert, times.select));
    }
    let mut database = Connection::open(first.as_deref().unwrap_or(PATH))?;
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS reading (id INTEGER PRIMARY KEY, sensor TEXT, value REAL);
         CREATE INDEX IF NOT EXISTS by_sensor ON reading (sensor);",
    )?;
    let before: i64 = database.query_row("SELECT count(*) FROM reading", [], |r| r.get(0))?;
    println!("{before} readings of earlier runs");
    let insertion = database.transaction()?;
    {
        let mut insert = insertion.prepare("INSERT INTO reading (sensor, value) VALUES (?1, ?2)")?;
        for i in 0..ROWS {
            insert.execute(params![format!("sensor-{}", i % 7), i as f64 / 2.0])?;
        }
    }
    insertion.commit()?;
    // A journal on the file system, then undone.
    let undone = database.transaction()?;
    undone.execute("DELETE FROM reading WHERE value > 100", [])?;
    undone.rollback()?;
    let mut query = database
        .prepare("SELECT sensor, count(*), sum(value) FROM reading GROUP BY sensor ORDER BY sensor")?;
    let rows =
        query.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?, r.get::<_, f64>(2)?)))?;
    for row in rows {
        let (sensor, count, sum) = row?;
        println!("{sensor}: {count} readings, sum {sum:.1}");
    }
    let check: String = database.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
    println!("integrity: {check}");
    Ok(())
}

//! SQLite on files: the same program inside an enclave, where they are in its memory, and outside.
//!
//! `enclos run examples/sqlite`
#![forbid(unsafe_code)]

use rusqlite::{Connection, Result, params};

/// Where the database lies; inside, in the enclave's in-memory file system.
const PATH: &str = "/tmp/enclos-example.sqlite";
const ROWS: i64 = 20_000;

fn main() -> Result<()> {
    for suffix in ["", "-journal"] {
        // Of an earlier run, outside; inside there is none.
        let _ = std::fs::remove_file(format!("{PATH}{suffix}"));
    }
    let mut database = Connection::open(PATH)?;
    database.execute_batch("CREATE TABLE reading (id INTEGER PRIMARY KEY, sensor TEXT, value REAL)")?;
    let insertion = database.transaction()?;
    {
        let mut insert = insertion.prepare("INSERT INTO reading (sensor, value) VALUES (?1, ?2)")?;
        for i in 0..ROWS {
            insert.execute(params![format!("sensor-{}", i % 7), i as f64 / 2.0])?;
        }
    }
    insertion.commit()?;
    database.execute_batch("CREATE INDEX by_sensor ON reading (sensor)")?;
    // A journal on the file system, then undone.
    let undone = database.transaction()?;
    undone.execute("DELETE FROM reading WHERE value > 100", [])?;
    undone.rollback()?;
    drop(database);
    // What was committed is in the file, for whoever opens it.
    let database = Connection::open(PATH)?;
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
    std::fs::remove_file(PATH).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

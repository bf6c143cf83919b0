//! What the host of an engine inside an enclave keeps for it: sealed records in an embedded database.

use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::StoreError;
use crate::engine::{Change, NotKept, Record, Records};

/// Name to sealed contents.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sealed-records");

/// Sealed records in a file that only this process may use.
#[derive(Debug)]
pub struct RecordFile {
    database: Database,
    path: PathBuf,
}

impl RecordFile {
    /// Opens the file in a folder, making both when they are not there; only the owner may read it.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened or is in use.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("sealed-records.redb");
        let open = || -> Result<Database, redb::Error> {
            let database = super::embedded::create(folder, &path)?;
            let write = database.begin_write()?;
            write.open_table(RECORDS)?;
            write.commit()?;
            Ok(database)
        };
        match open() {
            Ok(database) => Ok(Self { database, path }),
            Err(source) => Err(StoreError::Embedded { path, source: source.into() }),
        }
    }

    fn kept<T>(&self, outcome: Result<T, redb::Error>) -> Result<T, NotKept> {
        outcome.map_err(|error| NotKept {
            reason: format!("{}: {error}; check the disk and its permissions", self.path.display()),
        })
    }
}

impl Records for RecordFile {
    fn load(&self) -> Result<Vec<Record>, NotKept> {
        let load = || {
            let table = self.database.begin_read()?.open_table(RECORDS)?;
            let mut records = Vec::new();
            for entry in table.iter()? {
                let (name, blob) = entry?;
                records.push(Record { name: name.value().to_owned(), blob: blob.value().to_owned() });
            }
            Ok(records)
        };
        self.kept(load())
    }

    fn commit(&self, changes: &[Change]) -> Result<(), NotKept> {
        let commit = || {
            let write = self.database.begin_write()?;
            {
                let mut table = write.open_table(RECORDS)?;
                for Change { name, blob } in changes {
                    match blob {
                        Some(blob) => table.insert(name.as_str(), blob.as_slice())?.map(drop),
                        None => table.remove(name.as_str())?.map(drop),
                    };
                }
            }
            write.commit()?;
            Ok(())
        };
        self.kept(commit())
    }
}

//! The store that several replicas share: PostgreSQL.
//!
//! Every transaction that depends on what it read takes the row or table lock first, so that two replicas cannot both
//! decide on the same state.

use std::{
    fmt,
    mem::ManuallyDrop,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use postgres::{
    Client, Config, Error, Transaction,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Revision, Signers, Store, StoreError, StoredKey, Written, chain_of, json, key_of};
use crate::{config, tls};

/// What the tables are made by, once; an existing schema is left as it is.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS enclos_policies (
        tenant text NOT NULL, kind text NOT NULL, jws text NOT NULL, PRIMARY KEY (tenant, kind));
    CREATE TABLE IF NOT EXISTS enclos_tenants (
        tenant text PRIMARY KEY, revision bigint NOT NULL DEFAULT 0, seeded boolean NOT NULL DEFAULT false);
    CREATE TABLE IF NOT EXISTS enclos_policy_certificates (
        tenant text NOT NULL, thumbprint text NOT NULL, chain text NOT NULL, PRIMARY KEY (tenant, thumbprint));
    CREATE TABLE IF NOT EXISTS enclos_signing_keys (made bigint PRIMARY KEY, key text NOT NULL);";

/// Makes replicas that start at the same moment make the tables one after another. Any number that is always the same.
const SCHEMA_LOCK: i64 = 0x656e_636c_6f73;

/// Connections kept for the next request; more are made while they are needed.
const IDLE: usize = 16;

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    config: Config,
    tls: MakeRustlsConnect,
    idle: Mutex<Vec<Client>>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

impl Drop for PostgresStore {
    /// Taking leave of the server blocks, which asynchronous code that drops a service must not.
    fn drop(&mut self) {
        let idle = std::mem::take(self.idle.get_mut().unwrap_or_else(PoisonError::into_inner));
        // Where there is no thread to be had, the connections stay open until the process ends.
        let idle = ManuallyDrop::new(idle);
        let leave = move || drop(ManuallyDrop::into_inner(idle));
        let _ = std::thread::Builder::new().name("postgres-close".into()).spawn(leave);
    }
}

/// Of a transaction: the database's own failures, or ours.
enum Failure {
    Database(Error),
    Store(StoreError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl PostgresStore {
    /// Connects, and makes the tables when they are not there. Blocks: not for asynchronous code.
    ///
    /// A database on another machine is spoken to over TLS only, whose certificate is checked against `ca`, or the roots
    /// of the system.
    ///
    /// # Errors
    /// [`StoreError`] when the connection string cannot be used, or the database cannot be reached.
    pub fn open(configuration: &config::Postgres) -> Result<Self, StoreError> {
        let refuse = |reason: String| StoreError::Postgres { reason };
        let mut config: Config =
            configuration.connection.parse().map_err(|error: Error| refuse(error.to_string()))?;
        if config.get_password().is_some() {
            return Err(refuse("the connection string has a password; put it into password_file".into()));
        }
        if let Some(path) = &configuration.password_file {
            let password = std::fs::read_to_string(path)
                .map_err(|error| refuse(format!("{} cannot be read: {error}", path.display())))?;
            config.password(password.trim_end_matches(['\r', '\n']));
        }
        let is_local = config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => config::is_loopback(name),
            Host::Unix(_) => true,
        }) && config.get_hostaddrs().iter().all(IpAddr::is_loopback);
        let asked = config.get_ssl_mode() == SslMode::Require;
        let secured = !is_local || configuration.ca.is_some() || asked;
        config.ssl_mode(if secured { SslMode::Require } else { SslMode::Disable });
        config.application_name("enclos-attestation-service");
        config.connect_timeout(Duration::from_secs(5)).tcp_user_timeout(Duration::from_secs(10));
        let tls = tls::client(configuration.ca.as_deref()).map_err(refuse)?;
        let store = Self { config, tls: MakeRustlsConnect::new(tls), idle: Mutex::default() };
        store
            .run(|transaction| {
                transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK])?;
                transaction.batch_execute(SCHEMA)?;
                Ok(Written::Done)
            })
            .map(|_| ())?;
        Ok(store)
    }

    fn connect(&self) -> Result<Client, Error> {
        let mut client = self.config.connect(self.tls.clone())?;
        // An answer may be sent when a commit returns: also where the server's default is otherwise.
        client.batch_execute(
            "SET synchronous_commit = on; SET statement_timeout = '10s'; SET lock_timeout = '10s'; \
             SET client_min_messages = warning",
        )?;
        Ok(client)
    }

    /// Runs a transaction and commits it. Every one of ours may be done twice, so it is tried again on a new connection
    /// when the old one turns out to have been closed.
    fn run<T: Outcome>(
        &self,
        work: impl Fn(&mut Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = |client: &mut Client| {
            let mut transaction = client.transaction()?;
            let outcome = work(&mut transaction)?;
            if outcome.is_to_be_kept() { transaction.commit() } else { transaction.rollback() }?;
            Ok(outcome)
        };
        let kept = idle().pop();
        let mut again = kept.is_some();
        let mut next = kept.map_or_else(|| self.connect(), Ok);
        loop {
            let mut client = next.map_err(|error| failed(&error))?;
            let outcome = attempt(&mut client);
            match outcome {
                Err(Failure::Database(_)) if again && client.is_closed() => {
                    // Those that were kept beside it are from before the server went away, too.
                    idle().clear();
                    again = false;
                    next = self.connect();
                }
                outcome => {
                    let mut idle = idle();
                    if !client.is_closed() && idle.len() < IDLE {
                        idle.push(client);
                    }
                    return outcome.map_err(|failure| match failure {
                        Failure::Database(error) => failed(&error),
                        Failure::Store(error) => error,
                    });
                }
            }
        }
    }
}

/// What a transaction comes to: is it to be committed?
trait Outcome {
    fn is_to_be_kept(&self) -> bool {
        true
    }
}

impl Outcome for Written {
    fn is_to_be_kept(&self) -> bool {
        *self == Self::Done
    }
}
impl Outcome for Option<String> {}
impl Outcome for Signers {}
impl Outcome for Vec<StoredKey> {}

fn failed(error: &Error) -> StoreError {
    let mut reason = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        next = cause.source();
    }
    StoreError::Postgres { reason }
}

/// Whether a tenant's certificates are still of a revision, and stay so until the transaction ends. With `change`, they
/// are of the next from then on.
fn is_current(
    transaction: &mut Transaction<'_>,
    tenant: &str,
    decided: Revision,
    change: bool,
) -> Result<bool, Error> {
    transaction
        .execute("INSERT INTO enclos_tenants (tenant) VALUES ($1) ON CONFLICT DO NOTHING", &[&tenant])?;
    let lock = if change { "UPDATE" } else { "SHARE" };
    let query = format!("SELECT revision FROM enclos_tenants WHERE tenant = $1 FOR {lock}");
    let current: i64 = transaction.query_one(query.as_str(), &[&tenant])?.get(0);
    if change {
        let next = "UPDATE enclos_tenants SET revision = revision + 1 WHERE tenant = $1";
        transaction.execute(next, &[&tenant])?;
    }
    Ok(u64::try_from(current) == Ok(decided.0))
}

fn made_of(made: u64) -> Result<i64, Failure> {
    i64::try_from(made).map_err(|error| {
        Failure::Store(StoreError::Damaged {
            what: format!("the time {made} of a key"),
            reason: error.to_string(),
        })
    })
}

impl Store for PostgresStore {
    fn policy(&self, tenant: &str, kind: &str) -> Result<Option<String>, StoreError> {
        self.run(|transaction| {
            let query = "SELECT jws FROM enclos_policies WHERE tenant = $1 AND kind = $2";
            Ok(transaction.query_opt(query, &[&tenant, &kind])?.map(|row| row.get(0)))
        })
    }

    fn set_policy(
        &self,
        tenant: &str,
        kind: &str,
        jws: Option<&str>,
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.run(|transaction| {
            if !is_current(transaction, tenant, decided, false)? {
                return Ok(Written::Stale);
            }
            match jws {
                Some(jws) => transaction.execute(
                    "INSERT INTO enclos_policies (tenant, kind, jws) VALUES ($1, $2, $3)
                     ON CONFLICT (tenant, kind) DO UPDATE SET jws = excluded.jws",
                    &[&tenant, &kind, &jws],
                ),
                None => transaction.execute(
                    "DELETE FROM enclos_policies WHERE tenant = $1 AND kind = $2",
                    &[&tenant, &kind],
                ),
            }?;
            Ok(Written::Done)
        })
    }

    fn signers(&self, tenant: &str) -> Result<Signers, StoreError> {
        self.run(|transaction| {
            // One statement, so that both are of the same moment.
            let query = "SELECT coalesce((SELECT revision FROM enclos_tenants WHERE tenant = $1), 0),
                                c.thumbprint, c.chain
                         FROM (SELECT 1) AS one LEFT JOIN enclos_policy_certificates c ON c.tenant = $1
                         ORDER BY c.thumbprint";
            let mut signers = Signers::default();
            for row in transaction.query(query, &[&tenant])? {
                let revision: i64 = row.get(0);
                signers.revision = Revision(u64::try_from(revision).unwrap_or_default());
                if let (Some(thumbprint), Some(chain)) = (row.get::<_, Option<&str>>(1), row.get(2)) {
                    signers.chains.push(chain_of(thumbprint, chain).map_err(Failure::Store)?);
                }
            }
            Ok(signers)
        })
    }

    fn add_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        chain: &[String],
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.run(|transaction| {
            if !is_current(transaction, tenant, decided, true)? {
                return Ok(Written::Stale);
            }
            insert_certificate(transaction, tenant, thumbprint, chain)?;
            Ok(Written::Done)
        })
    }

    fn remove_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.run(|transaction| {
            if !is_current(transaction, tenant, decided, true)? {
                return Ok(Written::Stale);
            }
            let remove = "DELETE FROM enclos_policy_certificates WHERE tenant = $1 AND thumbprint = $2";
            if transaction.execute(remove, &[&tenant, &thumbprint])? == 0 {
                return Ok(Written::Done);
            }
            let others = "SELECT 1 FROM enclos_policy_certificates WHERE tenant = $1 LIMIT 1";
            let any = transaction.query_opt(others, &[&tenant])?.is_some();
            Ok(if any { Written::Done } else { Written::LastCertificate })
        })
    }

    fn seed_certificates(
        &self,
        tenant: &str,
        certificates: &[(String, Vec<String>)],
    ) -> Result<(), StoreError> {
        self.run(|transaction| {
            // Who comes second waits here for the first, and then changes nothing.
            let claim = "INSERT INTO enclos_tenants (tenant, seeded) VALUES ($1, true)
                         ON CONFLICT (tenant) DO UPDATE SET seeded = true WHERE NOT enclos_tenants.seeded";
            if transaction.execute(claim, &[&tenant])? == 1 {
                for (thumbprint, chain) in certificates {
                    insert_certificate(transaction, tenant, thumbprint, chain)?;
                }
            }
            Ok(Written::Done)
        })
        .map(|_| ())
    }

    fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        self.run(|transaction| {
            let mut keys = Vec::new();
            for row in transaction.query("SELECT made, key FROM enclos_signing_keys ORDER BY made", &[])? {
                let (made, key): (i64, &str) = (row.get(0), row.get(1));
                let made = u64::try_from(made).unwrap_or_default();
                keys.push(key_of(made, key.as_bytes()).map_err(Failure::Store)?);
            }
            Ok(keys)
        })
    }

    fn replace_keys(
        &self,
        newest: Option<u64>,
        add: Option<&StoredKey>,
        remove: &[u64],
    ) -> Result<Written, StoreError> {
        self.run(|transaction| {
            // Against itself and writers, not against readers.
            transaction.batch_execute("LOCK TABLE enclos_signing_keys IN SHARE ROW EXCLUSIVE MODE")?;
            let current: Option<i64> =
                transaction.query_one("SELECT max(made) FROM enclos_signing_keys", &[])?.get(0);
            if current != newest.map(made_of).transpose()? {
                return Ok(Written::Stale);
            }
            if let Some(key) = add {
                transaction.execute(
                    "INSERT INTO enclos_signing_keys (made, key) VALUES ($1, $2)",
                    &[&made_of(key.made)?, &json(key)],
                )?;
            }
            for made in remove {
                transaction
                    .execute("DELETE FROM enclos_signing_keys WHERE made = $1", &[&made_of(*made)?])?;
            }
            Ok(Written::Done)
        })
    }
}

fn insert_certificate(
    transaction: &mut Transaction<'_>,
    tenant: &str,
    thumbprint: &str,
    chain: &[String],
) -> Result<(), Error> {
    transaction.execute(
        "INSERT INTO enclos_policy_certificates (tenant, thumbprint, chain) VALUES ($1, $2, $3)
         ON CONFLICT (tenant, thumbprint) DO UPDATE SET chain = excluded.chain",
        &[&tenant, &thumbprint, &json(chain)],
    )?;
    Ok(())
}

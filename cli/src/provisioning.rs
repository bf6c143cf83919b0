//! Collateral from a provisioning service (PCCS), for the commands that judge evidence: option `--pccs`.

use std::path::PathBuf;

use enclos_verifier::{Collateral, Policy, Quote};

use crate::command::Error;

/// Where collateral comes from, if not from a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Provisioning {
    /// Fetch collateral from this provisioning service, such as https://localhost:8081/sgx/certification/v4/
    #[arg(long, value_name = "URL")]
    pub(crate) pccs: Option<String>,
    /// Check the provisioning service's TLS certificate against these, PEM; default: those that browsers trust
    #[arg(long, value_name = "FILE", requires = "pccs")]
    pccs_ca: Option<PathBuf>,
    /// Keep fetched collateral in this folder until it expires; default: $XDG_CACHE_HOME/enclos/collateral, else ~/.cache/…
    #[arg(long, value_name = "FOLDER", requires = "pccs")]
    pccs_cache: Option<PathBuf>,
}

#[cfg(feature = "pccs")]
mod fetching {
    use std::{env, sync::Arc};

    use enclos_attested_tls::CollateralSource;
    use enclos_pccs::{Options, ProvisioningService, ServiceCollateral};
    use enclos_verifier::{Time, Verifier};

    use super::*;
    use crate::command::read;

    impl Provisioning {
        fn service(&self, url: &str) -> Result<ProvisioningService, Error> {
            let options = Options {
                cache: self.pccs_cache.clone().or_else(usual_cache),
                roots: self.pccs_ca.as_deref().map(read).transpose()?,
                ..Options::default()
            };
            ProvisioningService::new(url, options).map_err(|error| Error::Usage(error.to_string()))
        }

        /// The collateral for a quote, if there is a service to ask.
        pub(crate) fn collateral(
            &self,
            quote: &Quote<'_>,
            policy: &Policy,
        ) -> Result<Option<Collateral>, Error> {
            let Some(url) = &self.pccs else { return Ok(None) };
            let verifier = Verifier::new(policy.roots());
            let collateral = self.service(url)?.collateral(quote, &verifier, Time::now());
            collateral.map(Some).map_err(|error| Error::Provisioning(error.to_string()))
        }

        /// A source of collateral for peers, if there is a service to ask.
        pub(crate) fn source(&self, policy: &Policy) -> Result<Option<Arc<dyn CollateralSource>>, Error> {
            let Some(url) = &self.pccs else { return Ok(None) };
            let verifier = Verifier::new(policy.roots());
            Ok(Some(Arc::new(ServiceCollateral::new(self.service(url)?, verifier))))
        }
    }

    fn usual_cache() -> Option<PathBuf> {
        let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("enclos").join("collateral"))
    }
}

#[cfg(not(feature = "pccs"))]
mod absent {
    use std::sync::Arc;

    use enclos_attested_tls::CollateralSource;

    use super::*;

    impl Provisioning {
        fn missing(&self) -> Result<(), Error> {
            let Self { pccs, pccs_ca: ca, pccs_cache: cache } = self;
            // They are for the same option.
            let _ = (ca, cache);
            match pccs {
                None => Ok(()),
                Some(_) => Err(Error::Usage(
                    "this enclos was built without HTTP, which --pccs needs: where enclos came from, build it with\n\n  \
                     cargo install --path cli --features pccs\n\nor give collateral as a file"
                        .into(),
                )),
            }
        }

        pub(crate) fn collateral(&self, _: &Quote<'_>, _: &Policy) -> Result<Option<Collateral>, Error> {
            self.missing().map(|()| None)
        }

        pub(crate) fn source(&self, _: &Policy) -> Result<Option<Arc<dyn CollateralSource>>, Error> {
            self.missing().map(|()| None)
        }
    }
}

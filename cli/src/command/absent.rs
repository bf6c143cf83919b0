//! Commands of a build that was made without them: they say how to get one that has them.

/// A module with the `Args` and the `run` of a command that is not in this build.
macro_rules! absent {
    ($module:ident, $feature:literal, $what:literal) => {
        pub(crate) mod $module {
            use crate::command::{Error, Outcome};
            use crate::ui::Ui;

            const CURE: &str = concat!(
                "This enclos was built without ",
                $what,
                " crates most projects do not need. Where enclos came from, build it with the service:\n\n  cargo install --path cli --features ",
                $feature
            );

            /// Not in this build: see `--help`.
            #[derive(Debug, clap::Args)]
            #[command(after_help = CURE)]
            pub(crate) struct Args {
                /// Would be the service's
                #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
                arguments: Vec<String>,
                #[arg(skip)]
                pub(crate) json: bool,
            }

            pub(crate) fn run(args: &Args, _: Ui) -> Outcome {
                let _ = &args.arguments;
                Err(Error::Usage(CURE.to_owned()))
            }
        }
    };
}

#[cfg(not(feature = "attestation-service"))]
absent!(attestation_service, "attestation-service", "the attestation service, whose TLS, HTTP and database");
#[cfg(not(feature = "inference"))]
absent!(inference, "inference", "the inference service, whose HTTP and HPKE");

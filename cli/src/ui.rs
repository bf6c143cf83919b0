//! What people see: lines with a status word, a bar while they wait, and errors with their causes.
//!
//! Results go to standard output, everything else to standard error. Colours follow the terminal, `NO_COLOR` and
//! `CLICOLOR_FORCE`.

use std::error::Error;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

/// Bold green: done, good.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Bold yellow: look here.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default().bold();
/// Bold red: wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Names of things.
pub(crate) const LABEL: Style = AnsiColor::Cyan.on_default();
/// Less important.
pub(crate) const DIM: Style = Style::new().dimmed();

/// One line of a result, on standard output.
macro_rules! say {
    ($($arg:tt)*) => { $crate::ui::print(format_args!($($arg)*)) };
}
pub(crate) use say;

/// What [`say`] does. A reader that has gone away (`enclos inspect | head`) is no error, and ends the command.
pub(crate) fn print(line: fmt::Arguments<'_>) {
    match writeln!(anstream::stdout(), "{line}") {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: cannot write the result: {e}");
            std::process::exit(1);
        }
    }
}

/// How much is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ui {
    quiet: bool,
    json: bool,
}

impl Ui {
    /// With `quiet` only errors are said; with `json` results are for programs, and nothing moves on the screen.
    pub(crate) fn new(quiet: bool, json: bool) -> Self {
        Self { quiet, json }
    }

    /// Are results for programs?
    pub(crate) fn json(self) -> bool {
        self.json
    }

    /// Is only what went wrong to be said?
    pub(crate) fn quiet(self) -> bool {
        self.quiet
    }

    /// One line about what was done.
    pub(crate) fn status(self, word: &str, text: impl Display) {
        if !self.quiet && !self.json {
            anstream::eprintln!("{GOOD}{word:>12}{GOOD:#} {text}");
        }
    }

    /// One line that people should not miss. Also said where results are for programs.
    pub(crate) fn warn(self, text: impl Display) {
        if !self.quiet {
            anstream::eprintln!("{WARN}{:>12}{WARN:#} {text}", "warning");
        }
    }

    /// Something that takes a while without a known end; the bar goes when it is dropped.
    pub(crate) fn wait(self, text: impl Into<String>) -> Bar {
        let bar = if self.moves() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(style("{spinner} {msg} ({elapsed})"));
        bar.set_message(text.into());
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar(bar)
    }

    /// A known number of steps.
    pub(crate) fn steps(self, count: u64) -> Bar {
        let bar = if self.moves() { ProgressBar::new(count) } else { ProgressBar::hidden() };
        bar.set_style(style("{bar:30} {pos}/{len} {msg} ({elapsed})"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar(bar)
    }

    /// May things move on the screen?
    pub(crate) fn moves(self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }
}

/// A bar or spinner on standard error.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// One step further, to the one called this.
    pub(crate) fn step(&self, name: &str) {
        self.0.set_message(name.to_owned());
        self.0.inc(1);
    }

    /// Prints something while the bar stands aside.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Says an error and what caused it.
pub(crate) fn error(error: &dyn Error) {
    anstream::eprintln!("{BAD}error:{BAD:#} {error}");
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Messages often end with that of their source; it need not be said twice.
        let text = cause.to_string();
        if !said.contains(&text) {
            anstream::eprintln!("  {DIM}caused by:{DIM:#} {text}");
        }
        said = text;
        next = cause.source();
    }
}

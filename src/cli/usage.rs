//! What is said where the command line was used wrongly, and how the process ends then.

use std::ffi::OsString;
use std::process;

use clap::CommandFactory;
use clap::error::{ContextKind, ErrorKind};

use super::escape::drives;
use super::problem::Failure;
use super::report::note;
use super::{Cli, Format};

/// Prints help, version, or what is wrong, and ends the process with the code for it.
pub fn leave(error: &clap::Error) -> ! {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    if !wants_json(&arguments) {
        if arguments.iter().any(|argument| argument.to_string_lossy().chars().any(drives)) {
            note(&error.render().to_string());
            process::exit(error.exit_code());
        }
        plainly(&arguments).unwrap_or_else(|| error.exit()).exit();
    }
    let failure = Failure::wrong_use(what(error), next(error));
    failure.tell(Format::Json);
    process::exit(failure.code().into());
}

/// The same error without what only the environment says: its usage line is to show what was typed.
fn plainly(arguments: &[OsString]) -> Option<clap::Error> {
    let bare = Cli::command().mut_args(|argument| argument.env(None::<&'static str>));
    bare.try_get_matches_from(arguments).err()
}

/// Whether programs are to read the error; the arguments could not be parsed, so they are looked through.
fn wants_json(arguments: &[OsString]) -> bool {
    let typed = arguments.iter().skip(1).take_while(|argument| *argument != "--");
    let typed: Vec<&OsString> = typed.collect();
    let apart = typed.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    apart || typed.iter().any(|argument| *argument == "--output=json")
}

/// The error's first paragraph, in one line and without its `error:`.
fn what(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// A suggestion of the parser's, or else where the use is described.
fn next(error: &clap::Error) -> String {
    let suggested = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    match suggested.into_iter().find_map(|kind| error.get(kind)) {
        Some(name) => format!("did you mean `{name}`? --help says how it is used"),
        None => "--help after the command says how it is used".to_owned(),
    }
}

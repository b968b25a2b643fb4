//! Shell completions and man pages, made from the same definition that parses the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use clap_complete::env::{self, EnvCompleter};

use serde_json::json;

use super::output::Output;
use super::problem::Failure;

/// Print a completion script for a shell; it completes names of keys and secrets, too, which it asks of the daemon
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom completions bash > /usr/share/bash-completion/completions/strongroom
  strongroom completions zsh > /usr/share/zsh/vendor-completions/_strongroom
  strongroom completions fish > /usr/share/fish/vendor_completions.d/strongroom.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn run(self, out: &Output) -> Result<(), Failure> {
        let shell: &dyn EnvCompleter = match self.shell {
            Shell::Bash => &env::Bash,
            Shell::Zsh => &env::Zsh,
            Shell::Fish => &env::Fish,
        };
        let mut script = Vec::new();
        shell
            .write_registration(
                super::COMPLETE,
                "strongroom",
                "strongroom",
                "strongroom",
                &mut script,
            )
            .map_err(Failure::Output)?;
        out.bytes(&script)
    }
}

/// Print the man page, or write the pages of all commands into a directory
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom man | man -l -
  strongroom man --dir /usr/local/share/man/man1")]
pub struct Man {
    /// Write strongroom.1, strongroom-key.1, strongroom-key-create.1 … here
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, out: &Output) -> Result<(), Failure> {
        // The pages name no `help`: it has none of its own.
        let command = super::command().disable_help_subcommand(true);
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).map_err(Failure::Output)?;
            return out.bytes(&page);
        };
        std::fs::create_dir_all(&dir)
            .and_then(|()| clap_mangen::generate_to(command, &dir))
            .map_err(|error| {
                let what = format!("{} cannot be written: {error}", dir.display());
                Failure::failed(what, "choose a directory that this user may write")
            })?;
        match out.is_json() {
            true => out.document(&json!({ "directory": dir })),
            false => Ok(()),
        }
    }
}

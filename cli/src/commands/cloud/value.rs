//! A secret's value: from a file, from stdin, or typed without echo. Never from an argument, which others on the machine can see.

use std::io::{IsTerminal as _, Read};
use std::path::Path;

use ckrv_core::wire::MAX_CREDENTIAL_BYTES;
use zeroize::Zeroizing;

use crate::error::CliError;

/// Reads a value; the line break at its end, which an editor or `echo` puts there, is not part of a token.
///
/// # Errors
/// A value that is empty, too long or no UTF-8.
pub fn read(file: Option<&Path>, prompt: &str, keep_last_break: bool) -> Result<Zeroizing<String>, CliError> {
    let value = match file {
        Some(path) => {
            let opened =
                std::fs::File::open(path).map_err(|error| CliError::io(format!("can't read {}", path.display()), error))?;
            bounded(opened, &path.display().to_string())?
        }
        None if std::io::stdin().is_terminal() => {
            let typed = rpassword::prompt_password(format!("{prompt}: "));
            Zeroizing::new(typed.map_err(|error| CliError::io("can't read from the terminal", error))?)
        }
        None => bounded(std::io::stdin().lock(), "stdin")?,
    };
    let text = if keep_last_break { value.as_str() } else { value.trim_end_matches(['\n', '\r']) };
    if text.trim().is_empty() {
        return Err(CliError::usage("the value is empty").hint("give it on stdin or with --file, never as an argument"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

fn bounded(source: impl Read, shown: &str) -> Result<Zeroizing<String>, CliError> {
    let mut text = Zeroizing::new(String::new());
    let limit = u64::try_from(MAX_CREDENTIAL_BYTES).unwrap_or(u64::MAX);
    source.take(limit + 1).read_to_string(&mut text).map_err(|error| CliError::io(format!("can't read {shown}"), error))?;
    if text.len() > MAX_CREDENTIAL_BYTES {
        return Err(CliError::usage(format!("the value is too long: at most {} KiB are accepted", MAX_CREDENTIAL_BYTES / 1024)));
    }
    Ok(text)
}

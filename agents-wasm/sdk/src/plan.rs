//! Reading what job and operator say.

use crate::{Error, Job};

/// A host extra of the job.
pub fn extra<'a>(job: &'a Job, key: &str) -> Option<&'a str> {
    job.extra.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

/// A positive whole number from a job's extra, else from the configuration, else the default.
///
/// # Errors
/// `invalid-config` names the key that holds something else.
pub fn number(job: &Job, key: &str, default: u32) -> Result<u32, Error> {
    match extra(job, key) {
        Some(text) => parse(key, text),
        None => config_number(key).map(|found| found.unwrap_or(default)),
    }
}

/// A positive whole number from the configuration.
///
/// # Errors
/// `invalid-config` names the key that holds something else.
pub fn config_number(key: &str) -> Result<Option<u32>, Error> {
    crate::config::get(key).map(|text| parse(key, &text)).transpose()
}

fn parse(key: &str, text: &str) -> Result<u32, Error> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Error::InvalidConfig(format!("`{key}` must be a positive whole number, not `{text}`"))),
    }
}

/// The user's task, and what failed before where there is something.
pub fn prompt_with_feedback(job: &Job) -> String {
    match &job.feedback {
        None => job.prompt.clone(),
        Some(feedback) => format!(
            "{}\n\n---\n\nAn earlier attempt at this task is in the working tree, but it did not pass. Put it right. This is what was said:\n\n{}\n",
            job.prompt.trim_end(),
            feedback.trim_end()
        ),
    }
}

/// The image of an agent: the operator's (`image`), else the adapter's own.
pub fn image(default: &str) -> String {
    crate::config::get("image").unwrap_or_else(|| default.into())
}

/// A variable of a plan.
pub fn env(key: &str, value: &str) -> crate::KeyValue {
    crate::KeyValue { key: key.into(), value: value.into() }
}

//! `cargo xtask demo`: the main job on the embedded default, in a home folder of its own, as a user would type it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::machine::{Background, Browser, Home, absolute, typed};
use crate::steps::{self, Steps, say};
use crate::workspace;

#[path = "../../tests/src/activation.rs"]
mod activation;

const SPEC: &str = "---
agent: script
verify:
  - test -s GREETING.md
---
printf 'Hello from a job that ran elsewhere.\\n' > GREETING.md
printf '\\nSee GREETING.md.\\n' >> README.md
";

pub fn run() -> Result<()> {
    let mut steps = Steps::new();
    let ckrv = steps.run("build ckrv", || workspace::build("ckrv"))?;
    let mut home = Home::new(ckrv)?;
    let root = home.path("");
    let server = steps.run("a service of one's own: API, queue, store and workers in one process", || serve(&mut home, &root))?;
    steps.run("log in, as on any other service", || {
        login(&home, &root, &server.1)?;
        home.show("ckrv", &["cloud", "whoami"], &root)
    })?;
    let project = home.path("project");
    steps.run("a repository, and a spec for the job", || repository(&home, &project))?;
    steps.run("run it there, follow it, pull its diff", || job(&home, &project))?;
    steps.run("log out, stop the service", || {
        home.show("ckrv", &["cloud", "logout"], &root)?;
        drop(server);
        Ok(())
    })?;
    steps.finish("that was the main job");
    Ok(())
}

/// Starts the service; returns it and the code that its owner confirms a login with.
pub fn serve(home: &mut Home, root: &Path) -> Result<(Background, String)> {
    say("    --unsandboxed: the demo's job is a command of ours, and so needs no container engine");
    let mut server = home.start("ckrv", &["serve", "--listen", "127.0.0.1:0", "--unsandboxed"], root)?;
    let (mut url, mut code) = (None, None);
    let (url, code) = server.wait_for("its URL and one-time code", |line| {
        url = url.take().or_else(|| link(line));
        code = code.take().or_else(|| one_time_code(line));
        url.clone().zip(code.clone())
    })?;
    typed("export", &[&format!("CKRV_URL={url}")]);
    home.url = Some(url);
    Ok((server, code))
}

/// `ckrv cloud login` waits while somebody confirms it on the activation page. Here we are that somebody.
fn login(home: &Home, root: &Path, owner_code: &str) -> Result<()> {
    let mut login = home.start("ckrv", &["cloud", "login"], root)?;
    let (page, user_code) = page_and_code(&mut login)?;
    activate(&page, &user_code, owner_code)?;
    login.finish()
}

/// What `ckrv cloud login` shows its user.
pub fn page_and_code(login: &mut Background) -> Result<(String, String)> {
    let (mut page, mut user_code) = (None, None);
    login.wait_for("the activation page and a code", |line| {
        page = page.take().or_else(|| link(line));
        user_code = user_code.take().or_else(|| line.split([' ', '=', '&']).find(|word| is_user_code(word)).map(str::to_owned));
        page.clone().zip(user_code.clone())
    })
}

pub fn activate(page: &str, user_code: &str, owner_code: &str) -> Result<()> {
    let mut browser = Browser::new();
    let (mut url, mut html) = (page.to_owned(), browser.open(page, None)?);
    say(&format!("    (the demo opens {page} as a browser would,"));
    for _ in 0..3 {
        let Some(form) = activation::Form::parse(&html) else { break };
        let fields = form.fill(user_code, owner_code);
        let names = fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        url = absolute(&url, &form.action);
        html = browser.open(&url, Some(&activation::urlencoded(&fields)))?;
        say(&format!("     sends its form to {url}: {names})"));
    }
    if activation::Form::parse(&html).is_some() {
        bail!("the activation page still asks for something:\n{html}");
    }
    Ok(())
}

fn repository(home: &Home, project: &Path) -> Result<()> {
    let root = home.path("");
    home.show("git", &["init", "--quiet", "--bare", "--initial-branch=main", "origin.git"], &root)?;
    home.show("git", &["clone", "--quiet", "origin.git", "project"], &root)?;
    std::fs::write(project.join("README.md"), "# A project\n")?;
    std::fs::create_dir_all(project.join(".ckrv/specs"))?;
    std::fs::write(project.join(".ckrv/specs/greeting.md"), SPEC)?;
    for (name, value) in [("user.name", "Demo"), ("user.email", "demo@localhost")] {
        steps::run(&mut home.command("git", &["config", name, value], project))?;
    }
    home.show("cat", &[".ckrv/specs/greeting.md"], project)?;
    home.show("git", &["add", "."], project)?;
    home.show("git", &["commit", "--quiet", "-m", "Start"], project)?;
    home.show("git", &["push", "--quiet", "origin", "HEAD:main"], project)
}

fn job(home: &Home, project: &Path) -> Result<()> {
    let id = home.show_text("ckrv", &["run", "--cloud"], project)?;
    if id.is_empty() {
        bail!("`ckrv run --cloud` printed no job id");
    }
    home.show("ckrv", &["status", "@last"], project)?;
    home.show("ckrv", &["logs", "--follow", "@last"], project)?;
    home.show("ckrv", &["status", "@last"], project)?;
    home.show("ckrv", &["pull", "@last"], project)?;
    // A pull stages what it has merged.
    let stat = home.show_text("git", &["--no-pager", "diff", "--cached", "--stat"], project)?;
    for file in ["GREETING.md", "README.md"] {
        if !stat.contains(file) {
            bail!("the pulled diff should change {file}");
        }
    }
    Ok(())
}

fn link(line: &str) -> Option<String> {
    let word = line.split_whitespace().find(|word| word.starts_with("http://") || word.starts_with("https://"))?;
    Some(word.trim_end_matches(['.', ',', ')']).trim_end_matches('/').to_owned())
}

/// The last word of the line that speaks of it.
pub fn one_time_code(line: &str) -> Option<String> {
    let says = line.to_ascii_lowercase().contains("one-time code");
    says.then(|| line.split_whitespace().next_back().map(|word| word.trim_end_matches('.').to_owned())).flatten()
}

/// `ABCD-1234`
fn is_user_code(word: &str) -> bool {
    word.len() == 9
        && word.split('-').all(|part| part.len() == 4 && part.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_print_is_understood() {
        assert_eq!(link("listening on http://127.0.0.1:4711/").as_deref(), Some("http://127.0.0.1:4711"));
        assert_eq!(one_time_code("One-time code for logins: 123456").as_deref(), Some("123456"));
        assert!(is_user_code("ABCD-1234"));
        assert!(!is_user_code("ABCD1234-"));
    }
}

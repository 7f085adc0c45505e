//! What a hostile agent leaves behind for whoever runs git after it, and for whoever takes its result.

/// What the job's log says of it, line by line.
pub const REFUSED: [&str; 6] = [
    "`absolute -> /etc/passwd` is refused: it points to an absolute path",
    "`relative -> ../../../etc/passwd` is refused: it points out of the tree",
    "`deep/into-git -> ../.git/config` is refused: it points into a git folder",
    "`nested/.git` is refused: git folder",
    "`CASE/.GIT` is refused: git folder",
    "`pipe` is refused: fifo",
];
/// Nothing with these in its name is in the diff.
pub const NEVER_IN_THE_DIFF: [&str; 8] =
    ["absolute", "relative", "into-git", "nested/.git", "CASE", "pipe", "hooks", "fsmonitor"];
/// What is in the result, in a repository of `README.md` alone.
pub const RESULT: &str = ".gitattributes\nREADME.md\nfine.txt\ninside\nnested/file";

/// A script that sets every trap; whoever falls into one runs `command`.
#[must_use]
pub fn set(command: &str) -> String {
    format!(
        "set -e\n\
         for hook in pre-commit post-checkout post-commit post-merge reference-transaction post-index-change; do\n\
         mkdir -p .git/hooks; printf '#!/bin/sh\\n{command}\\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook; done\n\
         printf '[core]\\n\\tfsmonitor = {command}\\n\\tsshCommand = {command}\\n\\tpager = {command}\\n\\thooksPath = .git/hooks\\n\
         [filter \"trap\"]\\n\\tclean = {command}\\n\\tsmudge = {command}\\n[diff \"trap\"]\\n\\ttextconv = {command}\\n\
         \\tcommand = {command}\\n[diff]\\n\\texternal = {command}\\n[gc]\\n\\tauto = 1\\n' >> .git/config\n\
         printf '* filter=trap diff=trap merge=trap\\n' > .gitattributes\n\
         ln -s /etc/passwd absolute; ln -s ../../../etc/passwd relative; mkdir deep; ln -s ../.git/config deep/into-git; ln -s fine.txt inside\n\
         mkdir -p nested/.git/hooks; printf '[core]\\n\\tfsmonitor = {command}\\n' > nested/.git/config; echo x > nested/file\n\
         mkdir -p CASE/.GIT; echo x > CASE/.GIT/config; mkfifo pipe\n\
         echo changed >> README.md; echo fine > fine.txt\n"
    )
}

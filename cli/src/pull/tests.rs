//! On real repositories, with the real git. What these don't show: fetching over a network, and Windows' and macOS' file systems.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::*;

/// A repository with one commit, and a job's change to it, made elsewhere.
struct World {
    folder: tempfile::TempDir,
    base: String,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self { base: String::new(), folder };
        world.git(".", &["init", "--quiet", "--initial-branch=main", "user"]);
        world.configure("user");
        for (path, content) in [
            ("a.txt", "one\ntwo\nthree\nfour\nfive\n"),
            ("b.txt", "b\n"),
            ("dir/c.txt", "c\n"),
            ("old name.txt", "a name to change\n"),
        ] {
            world.write(&format!("user/{path}"), content.as_bytes());
        }
        world.git("user", &["add", "."]);
        world.git("user", &["commit", "--quiet", "-m", "start"]);
        let base = world.git("user", &["rev-parse", "HEAD"]);
        Self { base, ..world }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn configure(&self, repo: &str) {
        for (name, value) in [("user.name", "User"), ("user.email", "user@localhost")] {
            self.git(repo, &["config", name, value]);
        }
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn git(&self, folder: &str, args: &[&str]) -> String {
        Git::at(self.path(folder)).line(args).unwrap()
    }

    /// What an agent does in a checkout of the base, as a diff.
    fn job(&self, act: impl FnOnce(&Path)) -> Change {
        let job = tempfile::tempdir().unwrap();
        let target = job.path().join("job");
        self.git(".", &["clone", "--quiet", self.path("user").to_str().unwrap(), target.to_str().unwrap()]);
        let git = Git::at(&target);
        git.run(&["checkout", "--quiet", "--detach", &self.base], None).unwrap();
        act(&target);
        git.run(&["add", "--all", "--force", "."], None).unwrap();
        self.change(git.run(&["diff", "--cached", "--binary", "--full-index", "-M", "HEAD"], None).unwrap())
    }

    fn change(&self, diff: Vec<u8>) -> Change {
        Change { diff, base: self.base.clone(), message: "ckrv: task\n".into(), branch: "ckrv/task-1".into() }
    }

    fn pull(&self, change: &Change, target: &Target) -> Result<Report, CliError> {
        pull(&Git::at(self.path("user")), change, target, false)
    }

    /// Everything that a user could notice.
    fn look(&self) -> (String, String, String, Vec<u8>) {
        let status = self.git("user", &["status", "--porcelain=v2", "--ignored", "--branch", "--untracked-files=all"]);
        let refs = self.git("user", &["for-each-ref"]);
        let diff = self.git("user", &["diff", "--binary", "HEAD"]);
        (status, refs, diff, fs::read(self.path("user/.git/index")).unwrap())
    }
}

fn paths(report: &Report) -> Vec<String> {
    report.applied.iter().map(|applied| format!("{} {}", applied.change, applied.path)).collect()
}

#[test]
fn everything_that_git_can_hold_survives() {
    let world = World::new();
    let change = world.job(|job| {
        fs::write(job.join("image.bin"), [0, 159, 146, 150, 255, 10, 13]).unwrap();
        fs::remove_file(job.join("b.txt")).unwrap();
        fs::rename(job.join("old name.txt"), job.join("new \"na\tme\"\n.txt")).unwrap();
        fs::write(job.join("run.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(job.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(job.join("a.txt"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../a.txt", job.join("dir/link")).unwrap();
        fs::write(job.join("-dash é"), "x").unwrap();
        fs::write(job.join("no newline"), "end").unwrap();
        fs::write(job.join("empty"), "").unwrap();
        fs::write(job.join("crlf.txt"), "a\r\nb \r\n").unwrap();
    });
    let report = world.pull(&change, &Target::WorkingTree).unwrap();
    assert_eq!(report.applied.len(), 11, "{report:?}");
    assert_eq!(fs::read(world.path("user/image.bin")).unwrap(), [0, 159, 146, 150, 255, 10, 13]);
    assert!(!world.path("user/b.txt").exists() && !world.path("user/old name.txt").exists());
    assert_eq!(world.read("user/new \"na\tme\"\n.txt"), "a name to change\n");
    assert_eq!(fs::read_link(world.path("user/dir/link")).unwrap(), Path::new("../a.txt"));
    assert_eq!(world.read("user/crlf.txt"), "a\r\nb \r\n");
    for executable in ["run.sh", "a.txt"] {
        assert_eq!(fs::metadata(world.path(&format!("user/{executable}"))).unwrap().permissions().mode() & 0o111, 0o111);
    }
    // Staged, not committed, and nothing differs between index and files.
    assert_eq!(world.git("user", &["rev-parse", "HEAD"]), world.base);
    assert_eq!(world.git("user", &["diff", "--stat"]), "");
    assert_eq!(world.git("user", &["diff", "--cached", "--name-only"]).lines().count(), 10);
}

#[test]
fn other_local_changes_stay_as_they_are() {
    let world = World::new();
    world.write("user/dir/c.txt", b"mine\n");
    world.write("user/untracked", b"mine\n");
    world.write("user/staged", b"mine\n");
    world.git("user", &["add", "staged"]);
    let change = world.job(|job| fs::write(job.join("b.txt"), "job\n").unwrap());
    assert_eq!(paths(&world.pull(&change, &Target::WorkingTree).unwrap()), ["M b.txt"]);
    assert_eq!(
        (world.read("user/b.txt"), world.read("user/dir/c.txt"), world.read("user/untracked")),
        ("job\n".into(), "mine\n".into(), "mine\n".into())
    );
    assert_eq!(world.git("user", &["status", "--porcelain"]).trim(), "M  b.txt\n M dir/c.txt\nA  staged\n?? untracked");
}

#[test]
fn commits_made_meanwhile_are_merged_with() {
    let world = World::new();
    let change = world.job(|job| fs::write(job.join("a.txt"), "one\ntwo\nthree\nfour\nFIVE\n").unwrap());
    world.write("user/a.txt", b"ONE\ntwo\nthree\nfour\nfive\n");
    world.git("user", &["commit", "--quiet", "-am", "meanwhile"]);
    world.pull(&change, &Target::WorkingTree).unwrap();
    assert_eq!(world.read("user/a.txt"), "ONE\ntwo\nthree\nfour\nFIVE\n");
}

#[test]
fn a_second_pull_says_already_applied() {
    let world = World::new();
    let change = world.job(|job| {
        fs::write(job.join("b.txt"), "job\n").unwrap();
        fs::write(job.join("new"), "job\n").unwrap();
        fs::remove_file(job.join("dir/c.txt")).unwrap();
    });
    world.pull(&change, &Target::WorkingTree).unwrap();
    let before = world.look();
    let again = world.pull(&change, &Target::WorkingTree).unwrap();
    assert!(again.already_applied && again.applied.is_empty() && again.skipped.len() == 3, "{again:?}");
    assert_eq!(world.look(), before);
    world.git("user", &["commit", "--quiet", "-m", "took it"]);
    assert!(world.pull(&change, &Target::WorkingTree).unwrap().already_applied, "also once it is committed");
}

#[test]
fn a_conflict_is_listed_and_touches_nothing() {
    let world = World::new();
    let change = world.job(|job| {
        fs::write(job.join("a.txt"), "job\n").unwrap();
        fs::write(job.join("fine"), "job\n").unwrap();
    });
    world.write("user/a.txt", b"mine\n");
    world.git("user", &["commit", "--quiet", "-am", "meanwhile"]);
    let before = world.look();
    let error = world.pull(&change, &Target::WorkingTree).unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (Kind::Conflict, "conflicts"));
    assert_eq!(error.details.unwrap()["conflicts"], serde_json::json!(["a.txt"]));
    assert_eq!(world.look(), before);
}

#[test]
fn a_touched_file_with_unsaved_changes_is_refused_by_name() {
    let world = World::new();
    let change = world.job(|job| {
        for path in ["a.txt", "b.txt", "new", "dir/c.txt"] {
            fs::write(job.join(path), "job\n").unwrap();
        }
    });
    world.write("user/a.txt", b"mine\n");
    world.write("user/new", b"mine\n");
    world.write("user/b.txt", b"staged\n");
    world.git("user", &["add", "b.txt"]);
    world.write("user/b.txt", b"b\n");
    let before = world.look();
    let error = world.pull(&change, &Target::WorkingTree).unwrap_err();
    assert_eq!(error.code, "unsaved_changes");
    assert_eq!(error.details.unwrap()["unsaved"], serde_json::json!(["a.txt", "b.txt", "new"]));
    assert_eq!(world.look(), before);
}

#[test]
fn what_stands_in_the_way_is_refused_by_name() {
    let world = World::new();
    let change = world.job(|job| fs::write(job.join("thing"), "job\n").unwrap());
    world.write("user/thing/mine", b"mine\n");
    assert!(world.pull(&change, &Target::WorkingTree).unwrap_err().message.contains("thing"));
    let change = world.job(|job| {
        fs::create_dir(job.join("folder")).unwrap();
        fs::write(job.join("folder/file"), "job\n").unwrap();
    });
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), world.path("user/folder")).unwrap();
    assert!(world.pull(&change, &Target::WorkingTree).unwrap_err().message.contains("folder/file"));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "nothing is written through a link");
}

#[test]
fn a_folder_may_become_a_file_and_a_file_a_folder() {
    let world = World::new();
    let change = world.job(|job| {
        fs::remove_dir_all(job.join("dir")).unwrap();
        fs::write(job.join("dir"), "file\n").unwrap();
        fs::remove_file(job.join("b.txt")).unwrap();
        fs::create_dir(job.join("b.txt")).unwrap();
        fs::write(job.join("b.txt/in"), "in\n").unwrap();
    });
    world.pull(&change, &Target::WorkingTree).unwrap();
    assert_eq!((world.read("user/dir"), world.read("user/b.txt/in")), ("file\n".into(), "in\n".into()));
    assert_eq!(world.git("user", &["diff", "--stat"]), "");
    assert!(world.pull(&change, &Target::WorkingTree).unwrap().already_applied);
}

#[test]
fn an_ignored_new_file_is_not_lost() {
    let world = World::new();
    world.write("user/.git/info/exclude", b"*.out\n");
    let change = world.job(|job| fs::write(job.join("result.out"), "job\n").unwrap());
    world.pull(&change, &Target::WorkingTree).unwrap();
    assert_eq!(world.git("user", &["status", "--porcelain"]).trim(), "A  result.out");
}

#[test]
fn a_dry_run_says_all_and_touches_nothing() {
    let world = World::new();
    let change = world.job(|job| fs::write(job.join("b.txt"), "job\n").unwrap());
    let before = world.look();
    let git = Git::at(world.path("user"));
    for target in [Target::WorkingTree, Target::Branch(None), Target::Worktree(world.path("other"))] {
        let report = pull(&git, &change, &target, true).unwrap();
        assert_eq!(
            (paths(&report), report.dry_run, report.already_applied),
            (vec!["M b.txt".to_owned()], true, false),
            "{target:?}"
        );
    }
    assert_eq!(world.look(), before);
    assert!(!world.path("other").exists());
}

fn hostile(path: &str, mode: &str, content: &str) -> Vec<u8> {
    format!("diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{content}\n\\ No newline at end of file\n").into_bytes()
}

#[test]
fn a_hostile_path_is_refused_by_name() {
    let world = World::new();
    let before = world.look();
    for (path, mode, content, shown) in [
        (".git/hooks/pre-commit", "100755", "evil", ".git/hooks/pre-commit"),
        ("sub/.GIT/config", "100644", "evil", "sub/.GIT/config"),
        ("../outside", "100644", "evil", "../outside"),
        ("git~1/config", "100644", "evil", "git~1/config"),
        ("link", "120000", "../../etc/passwd", "link -> ../../etc/passwd"),
        ("link", "120000", "/etc/passwd", "link -> /etc/passwd"),
        ("link", "120000", ".git/hooks", "link -> .git/hooks"),
        ("module", "160000", "Subproject commit 0123456789012345678901234567890123456789", "module"),
    ] {
        for target in [Target::WorkingTree, Target::Branch(None)] {
            let error = world.pull(&world.change(hostile(path, mode, content)), &target).unwrap_err();
            assert!(error.code == "refused_path" && error.message.contains(shown), "{path}: {error:?}");
        }
    }
    assert_eq!(world.look(), before);
    assert!(!world.path("outside").exists());
}

#[test]
fn a_branch_holds_exactly_the_jobs_result_on_its_base() {
    let world = World::new();
    let change = world.job(|job| fs::write(job.join("a.txt"), "job\n").unwrap());
    world.write("user/a.txt", b"mine\n");
    let report = world.pull(&change, &Target::Branch(None)).unwrap();
    assert_eq!(report.branch.as_deref(), Some("ckrv/task-1"));
    assert_eq!(world.git("user", &["rev-parse", "ckrv/task-1^"]), world.base);
    assert_eq!(world.git("user", &["show", "ckrv/task-1:a.txt"]), "job");
    assert_eq!(world.git("user", &["log", "-1", "--format=%an", "ckrv/task-1"]), "User");
    assert_eq!(world.read("user/a.txt"), "mine\n");
    assert!(world.pull(&change, &Target::Branch(None)).unwrap().already_applied);
    assert_eq!(world.pull(&change, &Target::Branch(Some("main".into()))).unwrap_err().code, "branch_exists");
    assert_eq!(world.pull(&change, &Target::Branch(Some("a..b".into()))).unwrap_err().kind, Kind::Usage);
}

#[test]
fn another_worktree_takes_the_changes() {
    let world = World::new();
    let change = world.job(|job| fs::write(job.join("b.txt"), "job\n").unwrap());
    let other = Target::Worktree(world.path("other"));
    assert_eq!(paths(&world.pull(&change, &other).unwrap()), ["M b.txt"]);
    assert_eq!((world.read("other/b.txt"), world.read("user/b.txt")), ("job\n".into(), "b\n".into()));
    assert!(world.pull(&change, &other).unwrap().already_applied);
    world.git(".", &["init", "--quiet", "foreign"]);
    assert_eq!(world.pull(&change, &Target::Worktree(world.path("foreign"))).unwrap_err().kind, Kind::Usage);
}

#[test]
fn no_hook_runs() {
    let world = World::new();
    for hook in ["post-checkout", "post-index-change", "reference-transaction", "pre-commit", "post-merge"] {
        let path = world.path(&format!("user/.git/hooks/{hook}"));
        fs::write(&path, format!("#!/bin/sh\ntouch '{}'\n", world.path("ran").display())).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let change = world.job(|job| fs::write(job.join("b.txt"), "job\n").unwrap());
    let _ = fs::remove_file(world.path("ran"));
    world.pull(&change, &Target::WorkingTree).unwrap();
    world.pull(&change, &Target::Branch(None)).unwrap();
    world.pull(&change, &Target::Worktree(world.path("other"))).unwrap();
    assert!(!world.path("ran").exists());
}

#[test]
fn a_shallow_clone_that_lacks_the_base_fetches_it() {
    let world = World::new();
    let change = world.job(|job| fs::write(job.join("b.txt"), "job\n").unwrap());
    world.write("user/dir/c.txt", b"later\n");
    world.git("user", &["commit", "--quiet", "-am", "later"]);
    let url = format!("file://{}", world.path("user").display());
    world.git(".", &["clone", "--quiet", "--depth=1", &url, "shallow"]);
    let shallow = Git::at(world.path("shallow"));
    let missing = ensure_base(&shallow, &"0".repeat(40), &url, "main").unwrap_err();
    assert_eq!(missing.code, "no_base");
    ensure_base(&shallow, &world.base, &url, "main").unwrap();
    pull(&shallow, &change, &Target::WorkingTree, false).unwrap();
    assert_eq!((world.read("shallow/b.txt"), world.read("shallow/dir/c.txt")), ("job\n".into(), "later\n".into()));
}

#[test]
fn a_job_that_changed_nothing_is_already_applied() {
    let world = World::new();
    assert!(world.pull(&world.change(Vec::new()), &Target::WorkingTree).unwrap().already_applied);
}

#[test]
fn an_old_git_is_told_of_the_way_without_it() {
    let error = require_version((2, 37)).unwrap_err();
    assert!(error.message.contains("2.38") && error.hint.unwrap().contains("--output"));
    require_version((2, 38)).unwrap();
    require_version((3, 0)).unwrap();
}

//! User story 4: a job's result comes to the user's repository, byte for byte and beside other work, or nothing is touched.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Result;
use ckrv_tests::git::git;
use ckrv_tests::repo::{ODD_NAMES, Repo};
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::Setup;

async fn scene(files: &[(&str, &str)]) -> Result<Scene> {
    Scene::with(Setup::unsandboxed(), Repo::small(files)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn us4_pull_merges_the_changes_beside_other_work() -> Result<()> {
    let lines = (1..30).map(|number| format!("line {number}\n")).collect::<String>();
    let scene = scene(&[("both.txt", &lines), ("mine.txt", "mine\n"), ("draft.txt", "draft\n")]).await?;
    let id = scene.succeed("echo the end >> both.txt; echo new > new.txt").await?;
    // Meanwhile: a commit in the same file, an unsaved change in another, a new file that git doesn't know.
    std::fs::write(scene.project.join("both.txt"), format!("the beginning\n{lines}"))?;
    git(&scene.project, &["commit", "-qam", "Mine"])?;
    std::fs::write(scene.project.join("mine.txt"), "unsaved\n")?;
    std::fs::write(scene.project.join("draft.txt"), "staged\n")?;
    git(&scene.project, &["add", "draft.txt"])?;
    std::fs::write(scene.project.join("untracked.txt"), "untracked\n")?;
    let head = scene.tree()?.head;
    let ran = scene.ckrv(&["pull", &id]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "M both.txt\nA new.txt\n"), "{ran:?}");
    assert!(ran.stderr.contains("changed 2 paths in your working tree, staged"), "{ran:?}");
    let tree = scene.tree()?;
    let both = format!("the beginning\n{lines}the end\n");
    for (path, content) in
        [("both.txt", both.as_str()), ("new.txt", "new\n"), ("mine.txt", "unsaved\n"), ("untracked.txt", "untracked\n")]
    {
        assert_eq!(tree.content(path), Some(content.as_bytes()), "{path}");
    }
    assert_eq!(tree.status, "M  both.txt\0M  draft.txt\0 M mine.txt\0A  new.txt\0?? untracked.txt\0");
    assert_eq!(tree.head, head, "nothing is committed in the user's name");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us4_a_second_pull_finds_it_already_applied() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.succeed("echo new > new.txt; echo more >> README.md").await?;
    scene.ckrv(&["pull", &id]).await?.ok()?;
    let before = scene.tree()?;
    let again = scene.ckrv(&["pull", &id]).await?;
    assert!(again.code == 0 && again.stderr.contains("already applied"), "{again:?}");
    assert_eq!(scene.tree()?, before);
    git(&scene.project, &["commit", "-qm", "Pulled"])?;
    let again = scene.ckrv(&["pull", "--json", &id]).await?;
    assert_eq!((again.code, &again.json()?["already_applied"]), (0, &true.into()), "{again:?}");
    assert_eq!(scene.tree()?.status, "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn us4_pull_of_a_failed_job_says_that_there_is_no_output() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.submit("echo half > half.txt; echo it broke >&2; exit 7").await?;
    assert_eq!(scene.ckrv(&["wait", &id]).await?.code, 5);
    let before = scene.tree()?;
    for command in [&["pull", &id][..], &["diff", &id], &["pull", &id, "--branch"], &["pull", &id, "--output", "f.diff"]] {
        let ran = scene.ckrv(command).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (5, ""), "{command:?}: {ran:?}");
        assert!(ran.stderr.contains("no successful output exists") && ran.stderr.contains("exit code 7"), "{ran:?}");
    }
    assert_eq!(scene.tree()?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_to_a_branch_a_worktree_a_file_or_nowhere_leaves_the_working_tree_alone() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.succeed("echo new > new.txt; printf '\\0\\377' > data.bin; rm README.md").await?;
    let before = scene.tree()?;
    let dry = scene.ckrv(&["pull", "--dry-run", &id]).await?;
    assert_eq!((dry.code, dry.stdout.as_str()), (0, "D README.md\nA data.bin\nA new.txt\n"), "{dry:?}");
    assert!(dry.stderr.contains("would change 3 paths") && dry.stderr.contains("nothing was touched"), "{dry:?}");
    let branch = scene.ckrv(&["pull", &id, "--branch"]).await?;
    let own = scene.job(&id).await?["feature_branch_name"].as_str().unwrap_or_default().to_owned();
    assert!(branch.stderr.contains(&format!("changed 3 paths on branch {own}")), "{branch:?}");
    scene.ckrv(&["pull", "--branch", "review", &id]).await?.ok()?;
    for name in [own.as_str(), "review"] {
        assert_eq!(git(&scene.project, &["rev-parse", &format!("{name}^")])?, before.head, "on top of the base");
        let changed = git(&scene.project, &["diff", "--name-status", &before.head, name])?;
        assert_eq!(changed, "D\tREADME.md\nA\tdata.bin\nA\tnew.txt");
    }
    let message = git(&scene.project, &["log", "-1", "--format=%B", "review"])?;
    assert!(message.starts_with("ckrv: spec1") && message.contains(&format!("Ckrv-Job: {id}")), "{message}");
    let diff = scene.ckrv(&["diff", &id]).await?.ok()?;
    let file = scene.folder().join("result.diff");
    scene.ckrv(&["pull", &id, "--output", &file.display().to_string()]).await?.ok()?;
    assert_eq!(std::fs::read_to_string(&file)?.trim_end(), diff);
    assert_eq!(scene.ckrv(&["pull", &id, "--stdout"]).await?.ok()?, diff);
    let folder = scene.folder().join("other worktree");
    scene.ckrv(&["pull", &id, "--worktree", &folder.display().to_string()]).await?.ok()?;
    assert_eq!(std::fs::read(folder.join("data.bin"))?, [0, 255]);
    assert!(!folder.join("README.md").exists() && folder.join("new.txt").exists());
    assert_eq!(scene.tree()?, before, "the working tree is as it was");
    // What `diff` printed is a diff that git itself applies.
    git(&scene.project, &["apply", "--check", &file.display().to_string()])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_files_deletions_renames_modes_and_links_survive() -> Result<()> {
    let scene = scene(&[
        ("gone.txt", "gone\n"),
        ("old-name.txt", "a text that is long enough to be recognised when it moves\nsecond line\n"),
        ("tool.sh", "#!/bin/sh\n"),
        ("dir/a.txt", "a\n"),
        ("becomes-a-folder", "file\n"),
        ("becomes-a-file/x", "x\n"),
        ("no-newline", "end"),
    ])
    .await?;
    let id = scene
        .succeed(
            "set -e
             rm gone.txt; mkdir moved; mv old-name.txt moved/new-name.txt; chmod +x tool.sh
             ln -s ../README.md dir/link; ln -s dir folder-link
             rm becomes-a-folder; mkdir becomes-a-folder; echo in > becomes-a-folder/in
             rm -r becomes-a-file; echo file > becomes-a-file
             head -c 300000 /dev/urandom > random.bin; cksum < random.bin > random.sum
             printf '\\000\\001\\r\\n\\377' > small.bin; : > empty; printf 'no newline' > no-newline
             printf 'crlf\\r\\nline\\r\\n' > crlf.txt",
        )
        .await?;
    scene.ckrv(&["pull", &id]).await?.ok()?;
    let tree = scene.tree()?;
    let names: Vec<_> = tree.files.iter().map(|(path, _, _)| path.display().to_string()).collect();
    let wanted = "becomes-a-file becomes-a-folder/in crlf.txt dir/a.txt dir/link empty folder-link moved/new-name.txt no-newline \
                  random.bin random.sum small.bin tool.sh";
    assert_eq!(names.join(" "), wanted);
    assert_eq!(tree.content("small.bin"), Some(&b"\0\x01\r\n\xff"[..]));
    assert_eq!(tree.content("crlf.txt"), Some(&b"crlf\r\nline\r\n"[..]));
    assert_eq!(tree.content("no-newline"), Some(&b"no newline"[..]));
    assert_eq!(tree.content("empty"), Some(&b""[..]));
    assert_eq!((tree.content("dir/link"), tree.content("folder-link")), (Some(&b"../README.md"[..]), Some(&b"dir"[..])));
    let mode = |path: &str| tree.files.iter().find(|(found, _, _)| found == Path::new(path)).map(|(_, mode, _)| mode & 0o111);
    assert_eq!((mode("tool.sh"), mode("crlf.txt")), (Some(0o111), Some(0)));
    let sum = std::process::Command::new("cksum").stdin(std::fs::File::open(scene.project.join("random.bin"))?).output()?;
    assert_eq!(tree.content("random.sum"), Some(sum.stdout.as_slice()));
    let staged = git(&scene.project, &["diff", "--cached", "--name-status", "-M"])?;
    assert!(staged.contains("R100\told-name.txt\tmoved/new-name.txt"), "{staged}");
    assert_eq!(git(&scene.project, &["diff", "--stat"])?, "", "everything is staged");
    Ok(())
}

/// As `printf` would write it in a shell script.
fn octal(name: &[u8]) -> String {
    name.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_file_names_survive() -> Result<()> {
    let names: Vec<Vec<u8>> = ODD_NAMES.iter().map(|name| name.to_vec()).chain([b"-n".to_vec(), b"a -> b".to_vec()]).collect();
    let scene = Scene::start().await?;
    let mut script = "set -e; mkdir odd\n".to_owned();
    for (number, name) in names.iter().enumerate() {
        // The `x` keeps a newline at the end of a name.
        script.push_str(&format!("n=$(printf '{}x'); echo {number} > \"./${{n%x}}\"\n", octal(name)));
    }
    let id = scene.succeed(&script).await?;
    scene.ckrv(&["pull", &id]).await?.ok()?;
    let made = scene.tree()?;
    for (number, name) in names.iter().enumerate() {
        let path = Path::new(OsStr::from_bytes(name));
        assert_eq!(made.content(path), Some(format!("{number}\n").as_bytes()), "{path:?}");
    }
    git(&scene.project, &["commit", "-qm", "Odd names"])?;
    git(&scene.project, &["push", "-q", "origin", "main"])?;
    // And changed, and deleted, where the base has them already.
    let mut script = "set -e\n".to_owned();
    for (number, name) in names.iter().enumerate() {
        let what = if number % 2 == 0 { "echo changed >>" } else { "rm --" };
        script.push_str(&format!("n=$(printf '{}x'); {what} \"./${{n%x}}\"\n", octal(name)));
    }
    let id = scene.succeed(&script).await?;
    scene.ckrv(&["pull", &id]).await?.ok()?;
    let changed = scene.tree()?;
    for (number, name) in names.iter().enumerate() {
        let path = Path::new(OsStr::from_bytes(name));
        let wanted = (number % 2 == 0).then(|| format!("{number}\nchanged\n").into_bytes());
        assert_eq!(changed.content(path).map(<[u8]>::to_vec), wanted, "{path:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gitignore_names_and_links_that_lead_out_are_left_behind() -> Result<()> {
    let scene = scene(&[(".gitignore", "*.o\nbuild/\n"), ("README.md", "x\n")]).await?;
    let script = "mkdir build; echo o > build/x; echo o > main.o; ln -s /etc/passwd out; ln -s ../../up up; echo ok > ok.txt";
    let id = scene.succeed(script).await?;
    scene.ckrv(&["pull", &id]).await?.ok()?;
    assert_eq!(scene.tree()?.status, "A  ok.txt\0");
    let log = scene.ckrv(&["logs", &id]).await?.ok()?;
    assert!(
        log.contains("`out -> /etc/passwd` is refused") && log.contains("`up -> ../../up` is refused"),
        "the log names them: {log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_changes_pulls_nothing() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.succeed("true").await?;
    let before = scene.tree()?;
    let ran = scene.ckrv(&["pull", &id]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert_eq!(scene.tree()?, before);
    assert_eq!(scene.ckrv(&["diff", &id]).await?.ok()?, "");
    assert!(scene.ckrv(&["status", &id]).await?.ok()?.contains("the agent made no changes"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_pull_with_a_dirty_touched_file_touches_nothing() -> Result<()> {
    let scene = scene(&[("a.txt", "a\n"), ("b.txt", "b\n")]).await?;
    let id = scene.succeed("echo job > a.txt; echo job > b.txt; echo job > new.txt").await?;
    std::fs::write(scene.project.join("a.txt"), "mine\n")?;
    std::fs::write(scene.project.join("new.txt"), "mine too\n")?;
    let before = scene.tree()?;
    let ran = scene.ckrv(&["pull", &id]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("unsaved changes, so nothing was touched:\n  a.txt\n  new.txt"), "{ran:?}");
    assert!(ran.stderr.contains(&format!("ckrv pull {id} --branch")), "{ran:?}");
    let (code, error) = error(&scene.ckrv(&["pull", "--json", &id]).await?)?;
    assert_eq!((code, &error["code"]), (1, &"unsaved_changes".into()));
    assert_eq!(error["details"]["unsaved"], serde_json::json!(["a.txt", "new.txt"]));
    assert_eq!(scene.tree()?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_pull_in_conflict_lists_the_paths_and_touches_nothing() -> Result<()> {
    let scene = scene(&[("a.txt", "a\n"), ("b.txt", "b\n"), ("c.txt", "c\n")]).await?;
    let id = scene.succeed("echo job > a.txt; echo job > b.txt; rm c.txt; echo job > fine.txt").await?;
    std::fs::write(scene.project.join("a.txt"), "mine\n")?;
    std::fs::write(scene.project.join("c.txt"), "mine\n")?;
    git(&scene.project, &["commit", "-qam", "Mine"])?;
    std::fs::write(scene.project.join("untracked.txt"), "untracked\n")?;
    let before = scene.tree()?;
    for arguments in [&["pull"][..], &["pull", "--dry-run"]] {
        let ran = scene.ckrv(&[arguments, &[&id]].concat()).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (7, ""), "{ran:?}");
        assert!(ran.stderr.contains("conflict with yours, so nothing was touched:\n  a.txt\n  c.txt\n"), "{ran:?}");
        assert!(ran.stderr.contains(&format!("`ckrv pull {id} --branch`")), "{ran:?}");
        assert_eq!(scene.tree()?, before);
    }
    let (code, error) = error(&scene.ckrv(&["pull", "--json", &id]).await?)?;
    assert_eq!((code, &error["code"]), (7, &"conflicts".into()));
    assert_eq!(error["details"]["conflicts"], serde_json::json!(["a.txt", "c.txt"]));
    // The command that it names works.
    scene.ckrv(&["pull", &id, "--branch"]).await?.ok()?;
    assert_eq!(scene.tree()?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_pull_of_a_running_job_is_not_finished() -> Result<()> {
    let scene = Scene::start().await?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo half > half.txt; {}", gate.wait())).await?;
    gate.reached().await?;
    let before = scene.tree()?;
    for command in ["pull", "diff"] {
        let ran = scene.ckrv(&[command, &id]).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (6, ""), "{ran:?}");
        assert!(ran.stderr.contains("has not finished: it is executing") && ran.stderr.contains("ckrv wait"), "{ran:?}");
    }
    assert_eq!(scene.tree()?, before);
    gate.open()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_pull_outside_of_a_repository() -> Result<()> {
    let scene = Scene::start().await?;
    let id = scene.succeed("echo a > a").await?;
    let ran = scene.user.run(scene.folder(), &["pull", &id]).await?;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("there is no git repository here") && ran.stderr.contains("--output"), "{ran:?}");
    let other = scene.folder().join("other");
    Repo::small(&[("x", "x\n")])?.clone_to(&other, None)?;
    // Another project's clone gets the base from the job's own repository, and has a conflict at most: nothing is lost.
    let before = git(&other, &["status", "--porcelain"])?;
    let ran = scene.user.run(&other, &["pull", "--dry-run", &id]).await?;
    assert!([0, 1, 7].contains(&ran.code), "{ran:?}");
    assert_eq!(git(&other, &["status", "--porcelain"])?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_sees_the_result_and_only_the_result() -> Result<()> {
    let scene = Scene::start().await?;
    let spec =
        script_spec("verify:\n  - test -s made.txt\n  - test ! -e left.o", "echo made > made.txt; echo o > left.o; rm left.o");
    let id = scene.submit_spec(&spec).await?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    let pulled = scene.ckrv(&["pull", &id]).await?;
    assert!(pulled.code == 0 && pulled.stderr.contains("verification: passed"), "{pulled:?}");
    Ok(())
}

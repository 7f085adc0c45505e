//! A checkout goes in, changes come out.

use std::collections::BTreeMap;
use std::io::Read as _;

use crate::support::{Bench, sh};
use ckrv_shim::archive::ArchiveWriter;
use ckrv_shim::protocol::*;

type Entry = (tar::EntryType, u32, Vec<u8>);

fn read(tar: &[u8]) -> BTreeMap<Vec<u8>, Entry> {
    let mut archive = tar::Archive::new(tar);
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let path = entry.path_bytes().into_owned();
        let mut content = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
        entry.read_to_end(&mut content).expect("content");
        found.insert(path, (entry.header().entry_type(), entry.header().mode().expect("mode"), content));
    }
    found
}

fn file(content: &[u8]) -> Entry {
    (tar::EntryType::Regular, 0o644, content.to_vec())
}

#[tokio::test]
async fn changes_deletions_modes_symlinks_binaries_and_odd_names_come_back() {
    let mut tar = ArchiveWriter::new(Vec::new());
    for name in ["same", "edited", "gone", "script", "dir/inner", "was-file", ".git/HEAD"] {
        tar.file(name.as_bytes(), 0o644, 2, &b"x\n"[..]).unwrap();
    }
    tar.symlink(b"link", b"./same").unwrap();
    tar.symlink(b"kept-link", b".//odd/../same").unwrap();
    tar.file(b"bad\xffname", 0o755, 3, &b"\0\xff\n"[..]).unwrap();
    let mut bench = Bench::start(60).await;
    let answer = bench.prepare(&tar.finish().unwrap()).await;
    assert!(matches!(answer, FromShim::Prepared { entries: 10, bytes: 17 }), "{answer:?}");

    let script = r#"
        printf 'y\n' > edited; touch same; rm gone; chmod +x script; rm -r dir; echo dir > dir; rm was-file; mkdir was-file; echo f > was-file/f
        ln -sfn edited link; printf 'a\0b\377' > bin; printf n > 'new
line'; printf d > ./-dash; mv bad* $(printf 'worse\376name'); echo hack > .git/config; mkdir -p sub/.GIT; echo x > sub/.GIT/config
        mkfifo pipe; mkdir empty; mkdir -p $(printf 'l%.0s' $(seq 1 90))/$(printf 'm%.0s' $(seq 1 90)); echo deep > "$(echo l*/m*)/file"
    "#;
    let result = bench.run(sh(1, script)).await;
    assert_eq!(result.record.status, ExitStatus::Code(0), "{}", result.stderr.escape_ascii());
    let (list, tar, collected) = bench.collect(|_| false).await;

    let deep = [vec![b'l'; 90], b"/".to_vec(), vec![b'm'; 90], b"/file".to_vec()].concat();
    let expected = BTreeMap::from([
        (b"edited".to_vec(), file(b"y\n")),
        (b"script".to_vec(), (tar::EntryType::Regular, 0o755, b"x\n".to_vec())),
        (b"dir".to_vec(), file(b"dir\n")),
        (b"was-file/f".to_vec(), file(b"f\n")),
        (b"link".to_vec(), (tar::EntryType::Symlink, 0o777, b"edited".to_vec())),
        (b"bin".to_vec(), file(b"a\0b\xff")),
        (b"new\nline".to_vec(), file(b"n")),
        (b"-dash".to_vec(), file(b"d")),
        (b"worse\xfename".to_vec(), (tar::EntryType::Regular, 0o755, b"\0\xff\n".to_vec())),
        (deep, file(b"deep\n")),
    ]);
    assert_eq!(read(&tar), expected);
    let mut deleted: Vec<_> = list.deleted.iter().map(|path| path.0.clone()).collect();
    deleted.sort();
    assert_eq!(deleted, [&b"bad\xffname"[..], b"dir/inner", b"gone", b"was-file"]);
    let refused: Vec<_> = list.refused.iter().map(|refused| (refused.path.to_string(), refused.reason.as_str())).collect();
    assert_eq!(refused, [("pipe".to_owned(), "fifo"), ("sub/.GIT".to_owned(), "git folder")]);
    assert_eq!((collected.entries, collected.tar_bytes), (10, tar.len() as u64));
    assert_eq!(collected.tar_sha256, sha256(&tar));
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[tokio::test]
async fn the_runner_leaves_out_what_it_does_not_want() {
    let mut bench = Bench::prepared(&[]).await;
    bench.run(sh(1, "mkdir target; echo big > target/out; echo src > src")).await;
    let (list, tar, _) = bench.collect(|changed| changed.path.0.starts_with(b"target/")).await;
    assert_eq!(list.changed.len(), 2);
    assert_eq!(read(&tar).into_keys().collect::<Vec<_>>(), [b"src".to_vec()]);
}

#[tokio::test]
async fn too_many_or_too_large_changes_are_an_error_with_the_limit_in_it() {
    let mut bench = Bench::prepared(&[]).await;
    bench.run(sh(1, "for i in 1 2 3; do echo $i > f$i; done")).await;
    bench.say(&ToShim::Collect(CollectLimits { max_entries: 2, max_bytes: 100 })).await;
    let FromShim::Failed { step: Step::Collect, message } = bench.answer().await else { panic!() };
    assert_eq!(message, "more than 2 paths have changed");

    bench.say(&ToShim::Collect(CollectLimits { max_entries: 10, max_bytes: 5 })).await;
    let mut stream = bench.incoming.recv().await.expect("a stream");
    assert_eq!(read_frame::<_, StreamHeader>(&mut stream, 1024).await.expect("header"), StreamHeader::Changes);
    let _list: ChangeList = read_frame(&mut stream, MAX_LIST).await.expect("a list");
    write_frame(&mut stream, &Selection::default()).await.expect("selection");
    let FromShim::Failed { step: Step::Collect, message } = bench.answer().await else { panic!() };
    assert_eq!(message, "the changes are 6 bytes long, the limit is 5");
}

#[tokio::test]
async fn a_tar_that_leads_out_of_the_workspace_is_refused_by_name() {
    for (path, via) in [(&b"../evil"[..], None), (b"/tmp/evil", None), (b"out/evil", Some(&b"out"[..]))] {
        let mut bench = Bench::start(60).await;
        let outside = bench.folder.path().join("outside");
        std::fs::create_dir(&outside).expect("a folder");
        let mut tar = ArchiveWriter::new(Vec::new());
        if let Some(link) = via {
            tar.symlink(link, outside.to_str().expect("utf-8").as_bytes()).expect("an entry");
        }
        tar.file(path, 0o644, 1, &b"x"[..]).expect("an entry");
        let answer = bench.prepare(&tar.finish().expect("a tar")).await;
        assert!(matches!(answer, FromShim::Failed { step: Step::Prepare, .. }), "{answer:?}");
        assert!(std::fs::read_dir(&outside).expect("a folder").next().is_none());
        assert!(!bench.folder.path().join("evil").exists());
    }
}

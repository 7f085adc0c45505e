use proptest::prelude::*;

use super::*;

fn public(text: &str) -> Result<RepoUrl, RepoUrlError> {
    parse_repo_url(text, RepoUrlPolicy::default())
}

#[test]
fn https_and_both_ways_to_write_ssh_are_accepted() {
    let https = public("https://GitHub.com:8443/o/r.git").unwrap();
    assert_eq!(
        (https.transport, https.host.as_str(), https.port, https.path.as_str()),
        (Transport::Https, "github.com", Some(8443), "/o/r.git")
    );
    let ssh = public("ssh://git@github.com:2222/o/r.git").unwrap();
    assert_eq!((ssh.transport, ssh.host.as_str(), ssh.port), (Transport::Ssh, "github.com", Some(2222)));
    let scp = public("git@github.com:o/r.git").unwrap();
    assert_eq!((scp.transport, scp.host.as_str(), scp.path.as_str()), (Transport::Ssh, "github.com", "o/r.git"));
    assert!(public("github.com:o/r").is_ok());
}

#[test]
fn user_and_password_are_refused_and_never_repeated() {
    for text in [
        "https://u:hunter2@github.com/o/r",
        "https://hunter2@github.com/o/r",
        "ssh://git:hunter2@github.com/o/r",
        "https://@github.com/o/r",
    ] {
        let error = public(text).unwrap_err();
        assert_eq!(error, RepoUrlError::UserInfo, "{text}");
        assert!(!format!("{error} {}", error.hint()).contains("hunter2"));
    }
}

#[test]
fn other_schemes_are_refused() {
    for text in ["http://github.com/o/r", "git://github.com/o/r", "ftp://x.org/r", "ext::sh -c x", "ext::sh"] {
        assert!(matches!(public(text), Err(RepoUrlError::Scheme(_) | RepoUrlError::Malformed(_))), "{text}");
    }
    assert!(public("http://github.com/o/r").unwrap_err().hint().contains("https"));
}

#[test]
fn local_paths_need_the_policy() {
    let local = RepoUrlPolicy { local_paths: true, ..RepoUrlPolicy::default() };
    for text in ["/srv/repo.git", "file:///srv/repo.git"] {
        assert_eq!(public(text), Err(RepoUrlError::LocalPath));
        assert_eq!(parse_repo_url(text, local).unwrap().path, "/srv/repo.git");
    }
    assert_eq!(public("file:/srv/x"), Err(RepoUrlError::LocalPath));
    assert!(parse_repo_url("file://host/srv/x", local).is_err());
    assert!(parse_repo_url("relative/repo", local).is_err());
    assert!(parse_repo_url("C:\\repo", local).is_err());
}

#[test]
fn private_addresses_are_refused_in_every_spelling() {
    let hosts = [
        "127.0.0.1",
        "0x7f.1",
        "2130706433",
        "127.1",
        "127.0.0.1.",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "[ff02::1]",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "nas.local",
        "metadata.google.internal",
    ];
    for host in hosts {
        for url in [format!("https://{host}/o/r"), format!("ssh://git@{host}/o/r"), format!("git@{host}:o/r")] {
            assert!(matches!(public(&url), Err(RepoUrlError::Private(_))), "{url}: {:?}", public(&url));
            let open = RepoUrlPolicy { private_addresses: true, ..RepoUrlPolicy::default() };
            assert!(parse_repo_url(&url, open).is_ok(), "{url}");
        }
    }
    for host in ["1.1.1.1", "[2606:4700::1111]", "github.com", "localhost.example.com", "mylocal"] {
        assert!(public(&format!("https://{host}/o/r")).is_ok(), "{host}");
    }
}

#[test]
fn what_git_or_ssh_would_misread_is_refused() {
    for text in [
        "",
        "-oProxyCommand=x",
        "https://github.com",
        "https://github.com/",
        "git@-oProxyCommand=x:r",
        "ssh://-oProxyCommand=x/r",
        "-x@github.com:r",
        "git@github.com:-r",
        "git@github.com:",
        "https://github.com/o/r?token=x",
        "https://github.com/o/r#x",
        "https://github.com/o/r\n",
        "https://git hub.com/o",
        "just-a-word",
        "https://github.com\\@10.0.0.1/x",
        "https:///github.com/o/r",
        "a/b:c",
        "git@github.com",
    ] {
        assert!(public(text).is_err(), "{text}");
    }
    assert_eq!(public(&format!("https://github.com/{}", "x".repeat(MAX_URL_BYTES))), Err(RepoUrlError::TooLong));
}

#[test]
fn branch_names_follow_git() {
    for name in ["main", "feature/x", "a.b", "v1.0", "x@y", "ünïcode", "a-", "0123abcd", "@x", "x.lockx"] {
        assert_eq!(check_branch(name), Ok(()), "{name}");
    }
    for name in [
        "", "-x", "@", "HEAD", "a b", "a..b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "/a", "a/", "a//b", ".a", "a/.b",
        "a.lock", "a.lock/b", "a.", "a@{b", "a\tb", "a\u{7f}",
    ] {
        assert!(check_branch(name).is_err(), "{name}");
    }
    assert!(check_branch(&"x".repeat(251)).is_err());
}

proptest! {
    #[test]
    fn nothing_accepted_can_be_read_as_an_option(text in "(https://|ssh://|git@|-)?[a-z@:/.\\[\\]\\-?#\\\\]{0,30}") {
        if let Ok(repo) = public(&text) {
            prop_assert!(!text.starts_with('-') && !repo.host.starts_with('-') && !repo.path.starts_with('-'));
            prop_assert!(!repo.host.is_empty() && !repo.path.is_empty());
        }
    }
}

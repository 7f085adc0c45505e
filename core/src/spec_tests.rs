use proptest::prelude::*;

use super::*;

fn parse(content: &str) -> Result<Spec, SpecError> {
    Spec::parse(content, None)
}

#[test]
fn plain_markdown_is_the_task_and_its_heading_gives_the_id() {
    let spec = parse("# Add a *dark* mode!\n\nMake it so.\n").unwrap();
    assert_eq!(spec.id, "add-a-dark-mode");
    assert_eq!(spec.task, "# Add a *dark* mode!\n\nMake it so.");
    assert_eq!(spec.agent, None);
}

#[test]
fn the_file_name_gives_the_id_before_the_heading_does() {
    assert_eq!(Spec::parse("# Other\n", Some(".ckrv/specs/Fix Login_2.md")).unwrap().id, "fix-login-2");
    assert_eq!(Spec::parse("# Other\n", Some("C:\\specs\\a.b.md")).unwrap().id, "a-b");
    assert_eq!(Spec::parse("do it", Some("???.md")).unwrap().id, "spec");
    assert_eq!(Spec::parse("do it", Some("-")).unwrap().id, "spec");
}

#[test]
fn front_matter_sets_up_the_job_and_the_body_is_the_task() {
    let text = "---\r\nid: dark-mode\nagent: claude\nmodel: m-1\ntimeout: 1h30m\nimage: rust:1\nsetup:\n  - npm ci\nverify: make test\n---\n\nDo it.\n---\nmore\n";
    let spec = parse(text).unwrap();
    assert_eq!(spec.id, "dark-mode");
    assert_eq!(spec.agent.as_deref(), Some("claude"));
    assert_eq!(spec.model.as_deref(), Some("m-1"));
    assert_eq!(spec.timeout_seconds, Some(5400));
    assert_eq!(spec.image.as_deref(), Some("rust:1"));
    assert_eq!(spec.setup, ["npm ci"]);
    assert_eq!(spec.verify, ["make test"]);
    assert_eq!(spec.task, "Do it.\n---\nmore");
}

#[test]
fn a_yaml_document_has_the_same_keys_and_a_task() {
    let spec = Spec::parse("agent: script\ncommand: echo hi > x\ntask: |\n  Say hi\n", Some("hi.yaml")).unwrap();
    assert_eq!((spec.agent.as_deref(), spec.command.as_deref()), (Some("script"), Some("echo hi > x")));
    assert_eq!((spec.task.as_str(), spec.id.as_str()), ("Say hi", "hi"));
    assert_eq!(parse("agent: script\nprompt: Say hi\n").unwrap().task, "Say hi");
    assert_eq!(parse("{\"agent\": \"script\", \"task\": \"Say hi\"}").unwrap().task, "Say hi");
}

#[test]
fn the_rest_of_a_yaml_document_is_the_task_as_it_was_written() {
    let text = "agent: claude\nverify:\n- make\n- make test\n# The goal:\ngoal: Faster start\nsteps:\n  - measure # first\n";
    let spec = Spec::parse(text, Some("x.yml")).unwrap();
    assert_eq!(spec.verify, ["make", "make test"]);
    assert!(spec.task.starts_with("goal: Faster start\n"), "{}", spec.task);
    assert!(spec.task.ends_with("- measure # first"), "{}", spec.task);
    let flow = Spec::parse("{agent: claude, goal: Faster start}", Some("x.yml")).unwrap();
    assert_eq!(flow.task, "{\n  \"goal\": \"Faster start\"\n}");
}

#[test]
fn prose_with_a_colon_stays_prose() {
    let text = "Note: the agent: line below is prose\nagent: [unclosed\n";
    assert_eq!(parse(text).unwrap().task, text.trim());
}

#[test]
fn a_script_needs_no_task_beside_its_command() {
    assert_eq!(parse("---\nagent: script\ncommand: make\n---\n").unwrap().task, "");
    assert_eq!(parse("---\nagent: script\n---\n"), Err(SpecError::MissingTask { yaml: false }));
    assert_eq!(Spec::parse("agent: script\n", Some("a.yml")), Err(SpecError::MissingTask { yaml: true }));
}

#[test]
fn an_empty_a_too_large_and_a_binary_spec_are_refused() {
    assert_eq!(parse(" \n\t\n"), Err(SpecError::Empty));
    assert_eq!(parse(""), Err(SpecError::Empty));
    assert!(parse(&"x".repeat(MAX_SPEC_BYTES)).is_ok());
    assert!(matches!(parse(&"x".repeat(MAX_SPEC_BYTES + 1)), Err(SpecError::TooLarge { .. })));
    assert_eq!(parse("a\0b"), Err(SpecError::NotText));
}

#[test]
fn broken_yaml_is_told_with_its_place_in_the_document() {
    let error = parse("---\nagent: claude\nmodel: [a, b\n---\nDo it\n").unwrap_err();
    let SpecError::Yaml { line, .. } = &error else { panic!("{error:?}") };
    assert!((3..=4).contains(line), "{error}");
    let SpecError::Yaml { line, column, .. } = parse("---\nagent: claude\n\tmodel: x\n---\nDo it\n").unwrap_err() else {
        panic!()
    };
    assert!((2..=3).contains(&line) && column > 0, "{line}:{column}");
    assert!(matches!(Spec::parse("agent: 'x\n", Some("a.yaml")), Err(SpecError::Yaml { .. })));
}

#[test]
fn unclosed_front_matter_is_not_taken_for_a_task() {
    assert_eq!(parse("---\nagnt claude\n\nDo it\n"), Err(SpecError::Unclosed));
    assert!(matches!(parse("---\njust text\n---\nDo it"), Err(SpecError::NotAMapping { .. })));
}

#[test]
fn a_mistyped_key_is_refused_by_name_and_line() {
    let error = parse("---\nagent: claude\ntimeuot: 3h\n---\nDo it\n").unwrap_err();
    assert_eq!(error, SpecError::UnknownKey { key: "timeuot".into(), line: 3, yaml: false });
    assert!(error.to_string().contains("`timeout`"), "{error}");
    let error = parse("agent: claude\ntask: x\ntimeuot: 3h\n").unwrap_err();
    assert_eq!(error, SpecError::UnknownKey { key: "timeuot".into(), line: 3, yaml: true });
}

#[test]
fn values_of_the_wrong_kind_are_refused_by_key() {
    let cases = [
        ("id: Not A Slug", "id"),
        ("id: -x", "id"),
        ("id: 7", "id"),
        ("timeout: soon", "timeout"),
        ("timeout: 0", "timeout"),
        ("timeout: -5", "timeout"),
        ("timeout: 1.5", "timeout"),
        ("setup: {a: b}", "setup"),
        ("verify: [1]", "verify"),
        ("verify: ['']", "verify"),
        ("agent: [a]", "agent"),
        ("command: [a]", "command"),
    ];
    for (line, key) in cases {
        match parse(&format!("---\n{line}\n---\nDo it")) {
            Err(SpecError::BadValue { key: found, line: 2, .. }) if found == key => {}
            other => panic!("{line}: {other:?}"),
        }
    }
    let many = "  - x\n".repeat(MAX_COMMANDS + 1);
    assert!(matches!(parse(&format!("---\nsetup:\n{many}---\nDo it")), Err(SpecError::BadValue { .. })));
}

#[test]
fn aliases_that_multiply_are_stopped_by_the_budget() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let refs = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    assert!(matches!(Spec::parse(&text, Some("bomb.yaml")), Err(SpecError::Yaml { .. })));
    let deep = format!("task: {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(matches!(Spec::parse(&deep, Some("deep.yaml")), Err(SpecError::Yaml { .. })));
}

#[test]
fn lengths_of_time_are_read() {
    for (text, seconds) in [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86_400), (" 5m ", 300)]
    {
        assert_eq!(parse_timeout(text), Some(seconds), "{text}");
    }
    for text in ["", "0", "0s", "m", "5x", "30m2h", "1h1h", "5 m", "99999999999", "99999d9", "-1", "1.5h", "٣m", "5é"] {
        assert_eq!(parse_timeout(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_gives_a_spec_or_an_error_and_never_a_bad_id(content in "\\PC{0,200}|(---\n)?[a-z: \\-\n\\[{&*'\"]{0,200}", name in proptest::option::of("\\PC{0,20}(\\.md|\\.yaml)?")) {
        if let Ok(spec) = Spec::parse(&content, name.as_deref()) {
            prop_assert!(is_slug(&spec.id), "{:?}", spec.id);
            prop_assert!(!spec.task.is_empty() || spec.command.is_some());
        }
    }

    #[test]
    fn prose_reaches_the_agent_unchanged(words in "[A-Z][a-z]{0,8}( [a-z]{1,8}){0,20}") {
        prop_assert_eq!(parse(&words).unwrap().task, words.trim());
        prop_assert_eq!(parse(&format!("---\nagent: claude\n---\n{words}\n")).unwrap().task, words.trim());
    }
}

//! Each rule of the policy, and that nothing gets past all of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::plan::{
    ContainerRequest, Descriptor, EgressRule, ModelRoute, Phase, Place, PlanFile, Resources, SecretRef, SecretSlot, Stop,
    StopSignal, Watchdog,
};

fn rule(host: &str, port: u16) -> EgressRule {
    EgressRule { host: host.into(), port }
}

fn route() -> ModelRoute {
    ModelRoute {
        base_url_env: "ANTHROPIC_BASE_URL".into(),
        path: String::new(),
        upstream: rule("api.anthropic.com", 443),
        slot: "anthropic-api-key".into(),
        header: "x-api-key".into(),
        prefix: String::new(),
        placeholder_env: Some("ANTHROPIC_API_KEY".into()),
    }
}

fn request() -> ContainerRequest {
    ContainerRequest {
        image: "localhost/ckrv/claude:2.1.330".into(),
        command: vec!["claude".into()],
        args: vec!["-p".into()],
        env: BTreeMap::from([("IS_SANDBOX".into(), "1".into())]),
        files: vec![],
        routes: vec![route()],
        secrets: vec![],
        resources: Resources { cpu_millis: 2000, memory_mib: 4096, disk_mib: 10240 },
        egress: vec![],
        stdin: Some("task".into()),
        stop: Stop { signal: StopSignal::Term, grace_seconds: 10 },
        watchdog: Watchdog { first_output_seconds: 120, idle_seconds: 900 },
        extra: BTreeMap::new(),
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        id: "claude".into(),
        version: "0.1.0".into(),
        display_name: "Claude Code".into(),
        phases: vec![Phase::Executing],
        images: vec!["localhost/ckrv/claude".into()],
        egress: vec![rule("docs.example.com", 443)],
        routes: vec![route()],
        secrets: vec![SecretSlot { name: "anthropic-api-key".into(), description: String::new(), required: true }],
        max_resources: Resources { cpu_millis: 4000, memory_mib: 16384, disk_mib: 51200 },
        config_schema: "{}".into(),
        extra: BTreeMap::new(),
    }
}

fn denied(change: impl FnOnce(&mut ContainerRequest)) -> String {
    let mut asked = request();
    change(&mut asked);
    clamp(&asked, &descriptor(), &Policy::default()).unwrap_err().to_string()
}

#[test]
fn the_default_policy_grants_a_built_in_adapter_what_it_asks_for() {
    let granted = clamp(&request(), &descriptor(), &Policy::default()).unwrap();
    assert_eq!(granted.request, request());
    assert_eq!(granted.clamped, []);
    assert_eq!(granted.routes[0].url.as_str(), "https://api.anthropic.com/");
    Policy::default().check().unwrap();
}

#[test]
fn an_image_must_be_declared_and_allowed() {
    assert!(denied(|asked| asked.image = "registry.example/evil:1".into()).contains("does not declare"));
    let policy = Policy { allowed_images: vec![], ..Policy::default() };
    let error = clamp(&request(), &descriptor(), &policy).unwrap_err();
    assert!(error.to_string().contains("not allowed"));
    assert!(error.hint.contains("localhost/ckrv/claude"), "{}", error.hint);
}

#[test]
fn an_image_of_the_same_name_in_another_registry_is_another_image() {
    assert_eq!(repository_of("localhost/ckrv/claude:1"), Some("localhost/ckrv/claude"));
    assert_eq!(repository_of("evil.example:5000/localhost/ckrv/claude:1"), Some("evil.example:5000/localhost/ckrv/claude"));
    assert_eq!(repository_of("debian"), Some("debian"));
    let digest = format!("a/b@sha256:{}", "0".repeat(64));
    assert_eq!(repository_of(&digest), Some("a/b"));
    for bad in ["", "A/b", "a//b", "a/../b", "a b", "a:", "-x", "a/b:tag:more", "a@sha256:00"] {
        assert_eq!(repository_of(bad), None, "{bad}");
    }
}

#[test]
fn a_specs_image_needs_one_that_also_has_the_agent() {
    let error = clamp_for(&request(), &descriptor(), &Policy::default(), Some("rust:1.95")).unwrap_err();
    assert!(error.hint.contains(r#"[images."rust:1.95:claude"]"#), "{}", error.hint);

    let combined = CombinedImage { image: "localhost/team/rust-claude:7".into() };
    let policy = Policy { images: BTreeMap::from([("rust:1.95:claude".into(), combined)]), ..Policy::default() };
    let granted = clamp_for(&request(), &descriptor(), &policy, Some("rust:1.95")).unwrap();
    assert_eq!(granted.request.image, "localhost/team/rust-claude:7");
}

#[test]
fn an_agent_of_any_image_runs_in_the_specs_own_if_that_is_allowed() {
    let mut descriptor = descriptor();
    descriptor.extra.insert("any-image".into(), "true".into());
    let error = clamp_for(&request(), &descriptor, &Policy::default(), Some("rust:1.95")).unwrap_err();
    assert!(error.to_string().contains("not allowed"), "{error}");
    let policy = Policy { allowed_images: vec!["rust".into()], ..Policy::default() };
    assert_eq!(clamp_for(&request(), &descriptor, &policy, Some("rust:1.95")).unwrap().request.image, "rust:1.95");
}

#[test]
fn variables_of_the_host_are_denied_wherever_the_plan_sets_them() {
    for name in ["LD_PRELOAD", "http_proxy", "KUBERNETES_PORT", "CKRV_TOKEN", "PATH", "HOME", "A=B", "", "1A"] {
        denied(|asked| drop(asked.env.insert(name.into(), "x".into())));
        denied(|asked| asked.secrets = vec![SecretRef { slot: "anthropic-api-key".into(), env: name.into() }]);
    }
    let mut descriptor = descriptor();
    descriptor.routes[0].base_url_env = "HTTPS_PROXY".into();
    let mut asked = request();
    asked.routes = descriptor.routes.clone();
    assert!(clamp(&asked, &descriptor, &Policy::default()).unwrap_err().to_string().contains("HTTPS_PROXY"));
}

#[test]
fn a_variable_of_a_route_cannot_be_set_by_the_plan() {
    let error = denied(|asked| drop(asked.env.insert("ANTHROPIC_BASE_URL".into(), "http://evil.example".into())));
    assert!(error.contains("a route or a secret sets it already"), "{error}");
}

#[test]
fn two_parts_of_a_plan_cannot_set_one_variable() {
    let error = denied(|asked| asked.routes.push(route()));
    assert!(error.contains("a route or a secret sets it already"), "{error}");
}

#[test]
fn addresses_and_private_names_are_never_reached() {
    for host in [
        "169.254.169.254",
        "127.1",
        "0x7f.1",
        "::1",
        "localhost",
        "metadata.google.internal",
        "kubernetes.default.svc.cluster.local",
        "metadata",
        "Example.com",
        "example.com.",
        "*.example.com",
        "exa mple.com",
        "",
    ] {
        let mut descriptor = descriptor();
        descriptor.egress.push(rule(host, 443));
        let policy = Policy { egress: vec![format!("{host}:443")], ..Policy::default() };
        let asked = ContainerRequest { egress: vec![rule(host, 443)], ..request() };
        assert!(clamp(&asked, &descriptor, &policy).is_err(), "{host}");
    }
}

#[test]
fn a_host_must_be_declared_and_is_left_out_unless_allowed() {
    assert!(denied(|asked| asked.egress = vec![rule("other.example.com", 443)]).contains("does not declare"));
    let asked = ContainerRequest { egress: vec![rule("docs.example.com", 443)], ..request() };
    let granted = clamp(&asked, &descriptor(), &Policy::default()).unwrap();
    assert_eq!(granted.request.egress, []);
    assert_eq!(granted.clamped[0].to_string(), "host: asked for docs.example.com:443, granted nothing");
    let policy = Policy { egress: vec!["docs.example.com:443".into()], ..Policy::default() };
    assert_eq!(clamp(&asked, &descriptor(), &policy).unwrap().request.egress, asked.egress);
}

#[test]
fn a_route_must_be_declared_to_the_letter_and_lead_to_an_allowed_api() {
    assert!(denied(|asked| asked.routes[0].header = "host".into()).contains("does not declare"));
    let policy = Policy { upstreams: vec![], ..Policy::default() };
    let error = clamp(&request(), &descriptor(), &policy).unwrap_err();
    assert!(error.hint.contains("api.anthropic.com:443"), "{}", error.hint);
}

#[test]
fn an_operator_may_lead_a_route_to_another_address() {
    let url: url::Url = "http://127.0.0.1:9/s/ok".parse().unwrap();
    let routes = BTreeMap::from([("api.anthropic.com:443".into(), RouteOverride { url: url.clone() })]);
    let policy = Policy { upstreams: vec![], routes, ..Policy::default() };
    policy.check().unwrap();
    assert_eq!(clamp(&request(), &descriptor(), &policy).unwrap().routes[0].url, url);
}

#[test]
fn a_secret_reaches_the_environment_only_where_policy_says_so() {
    let secret = SecretRef { slot: "anthropic-api-key".into(), env: "KEY".into() };
    let asked = ContainerRequest { secrets: vec![secret.clone()], ..request() };
    let granted = clamp(&asked, &descriptor(), &Policy::default()).unwrap();
    assert_eq!((granted.request.secrets.len(), granted.clamped.len()), (0, 1));
    let policy = Policy { secrets_in_env: true, ..Policy::default() };
    assert_eq!(clamp(&asked, &descriptor(), &policy).unwrap().request.secrets, [secret]);
    assert!(
        denied(|asked| asked.secrets = vec![SecretRef { slot: "other".into(), env: "KEY".into() }]).contains("does not declare")
    );
}

#[test]
fn files_stay_in_their_folder_and_within_bounds() {
    let file = |path: &str, content: &str| PlanFile {
        place: Place::Home,
        path: path.into(),
        content: content.into(),
        executable: false,
    };
    for path in ["../x", "/etc/passwd", "a/../b", "", "a//b", "./a", "a\0b", "a\\b"] {
        assert!(denied(|asked| asked.files = vec![file(path, "")]).contains("relative"), "{path}");
    }
    assert!(denied(|asked| asked.files = vec![file("a", ""), file("a", "")]).contains("twice"));
    assert!(denied(|asked| asked.files = (0..33).map(|n| file(&format!("f{n}"), "")).collect()).contains("33 files"));
    assert!(denied(|asked| asked.files = vec![file("a", &"x".repeat(1024 * 1024 + 1))]).contains("bytes"));
}

#[test]
fn a_command_has_words_that_can_be_passed() {
    assert!(denied(|asked| asked.command.clear()).contains("empty command"));
    assert!(denied(|asked| asked.args = vec!["a\0b".into()]).contains("NUL"));
    assert!(denied(|asked| asked.args = vec!["x".repeat(1 << 20)]).contains("longer"));
}

#[test]
fn resources_and_silence_are_cut_and_the_cut_is_told() {
    let asked = ContainerRequest {
        resources: Resources { cpu_millis: 64_000, memory_mib: 1_000_000, disk_mib: 1 },
        watchdog: Watchdog { first_output_seconds: 1, idle_seconds: u32::MAX },
        stop: Stop { signal: StopSignal::Int, grace_seconds: 3600 },
        ..request()
    };
    let granted = clamp(&asked, &descriptor(), &Policy::default()).unwrap();
    assert_eq!(granted.request.resources, Resources { cpu_millis: 4000, memory_mib: 8192, disk_mib: 1 });
    assert_eq!(granted.request.watchdog, Watchdog { first_output_seconds: 30, idle_seconds: 21600 });
    assert_eq!(granted.request.stop.grace_seconds, 60);
    let told: Vec<_> = granted.clamped.iter().map(|clamped| clamped.what.as_str()).collect();
    assert_eq!(told, ["processors", "memory", "time until the first output", "time without output", "time to end"]);
}

#[test]
fn a_timeout_has_a_default_and_a_limit() {
    let policy = Policy::default();
    assert_eq!(policy.timeout(None), Ok(1800));
    assert_eq!(policy.timeout(Some(60)), Ok(60));
    assert!(policy.timeout(Some(0)).is_err());
    assert!(policy.timeout(Some(6 * 3600 + 1)).unwrap_err().to_string().contains("21600"));
}

#[test]
fn a_local_command_stands_for_an_image_in_one_version() {
    let policy = Policy::default();
    let claude = policy.local_command("localhost/ckrv/claude:2.1.330").unwrap();
    assert!(claude.accepts("2.1.330 (Claude Code)\n"));
    assert!(!claude.accepts("2.1.197 (Claude Code)"));
    assert!(!claude.accepts("2.1.3301"));
    assert!(!claude.accepts("command not found"));
    let wide = LocalCommand { version: Some("0.61".into()), ..LocalCommand::default() };
    assert!(wide.accepts("gemini v0.61.4") && !wide.accepts("0.610.0"));
    assert!(policy.local_command("localhost/ckrv/script:1").unwrap().accepts("anything"));
    assert!(policy.local_command("rust:1").unwrap_err().hint.contains("[local.\"rust:1\"]"));
}

#[test]
fn an_unknown_key_is_an_error() {
    let error = serde_json::from_str::<Policy>(r#"{"alowed_images":[]}"#).unwrap_err().to_string();
    assert!(error.contains("alowed_images"), "{error}");
    assert!(serde_json::from_str::<Policy>(r#"{"time":{"max":1}}"#).is_err());
    assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
}

#[test]
fn a_policy_that_makes_no_sense_is_refused() {
    let wrong = |policy: Policy| policy.check().unwrap_err().key;
    assert_eq!(wrong(Policy { egress: vec!["*.example.com:443".into()], ..Policy::default() }), "egress");
    assert_eq!(wrong(Policy { upstreams: vec!["1.2.3.4:443".into()], ..Policy::default() }), "upstreams");
    let time = TimeLimits { default_seconds: 10, max_seconds: 5 };
    assert_eq!(wrong(Policy { time, ..Policy::default() }), "time");
    let route = RouteOverride { url: "ftp://example.com".parse().unwrap() };
    assert_eq!(wrong(Policy { routes: BTreeMap::from([("a.example.com:443".into(), route)]), ..Policy::default() }), "routes");
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("docs.example.com".to_owned()),
        4 => Just("api.anthropic.com".to_owned()),
        1 => Just("169.254.169.254".to_owned()),
        1 => Just("localhost".to_owned()),
        1 => "[a-z0-9.*-]{0,12}",
    ]
}

fn rules() -> impl Strategy<Value = Vec<EgressRule>> {
    prop::collection::vec(
        (host(), prop_oneof![8 => Just(443_u16), 1 => any::<u16>()]).prop_map(|(host, port)| EgressRule { host, port }),
        0..4,
    )
}

fn amounts() -> impl Strategy<Value = Resources> {
    let amount = || prop_oneof![0..20_000_u32, any::<u32>()];
    (amount(), amount(), amount()).prop_map(|(cpu_millis, memory_mib, disk_mib)| Resources { cpu_millis, memory_mib, disk_mib })
}

fn env_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z_]{1,6}",
        Just("LD_PRELOAD".to_owned()),
        Just("https_proxy".to_owned()),
        Just("PATH".to_owned()),
        "\\PC{0,4}"
    ]
}

prop_compose! {
    fn any_request()(
        image in prop_oneof![4 => Just("localhost/ckrv/claude:1".to_owned()), 1 => Just("rust:1".to_owned()), 1 => "\\PC{0,8}"],
        names in prop::collection::vec(env_name(), 0..2),
        paths in prop::collection::vec("[a-z./]{1,4}", 0..2),
        egress in rules(),
        upstream in rules(),
        slots in prop::collection::vec(prop_oneof![Just("anthropic-api-key".to_owned()), Just("other".to_owned())], 0..2),
        resources in amounts(),
        (first, idle, grace) in any::<(u32, u32, u32)>(),
    ) -> ContainerRequest {
        let mut asked = request();
        asked.image = image;
        asked.env = names.iter().map(|name| (name.clone(), "x".to_owned())).collect();
        asked.files = paths.into_iter().map(|path| PlanFile { place: Place::Home, path, content: String::new(), executable: true }).collect();
        asked.egress = egress;
        asked.routes.extend(upstream.into_iter().enumerate().map(|(number, upstream)| ModelRoute {
            upstream,
            base_url_env: format!("URL_{number}"),
            placeholder_env: None,
            ..route()
        }));
        asked.secrets = slots.into_iter().map(|slot| SecretRef { slot, env: "KEY".into() }).collect();
        asked.resources = resources;
        asked.watchdog = Watchdog { first_output_seconds: first, idle_seconds: idle };
        asked.stop.grace_seconds = grace;
        asked
    }
}

proptest! {
    #[test]
    fn what_is_granted_is_always_within_descriptor_and_policy(
        asked in any_request(), declared in rules(), max in amounts(), allowed in rules(), honest: bool, secrets_in_env: bool,
    ) {
        let mut descriptor = descriptor();
        descriptor.egress.extend(declared);
        if honest {
            descriptor.egress.extend(asked.egress.iter().cloned());
            descriptor.routes.extend(asked.routes.iter().cloned());
        }
        descriptor.max_resources = max;
        let mut policy = Policy { secrets_in_env, ..Policy::default() };
        policy.egress.extend(allowed.iter().map(EgressRule::to_string));
        if let Ok(granted) = clamp(&asked, &descriptor, &policy) {
            let run = &granted.request;
            prop_assert!(policy.check_image(&run.image).is_ok());
            prop_assert!(descriptor.images.iter().any(|image| Some(image.as_str()) == repository_of(&run.image)));
            for rule in &run.egress {
                prop_assert!(descriptor.egress.contains(rule) && policy.egress.contains(&rule.to_string()));
                prop_assert!(parse_endpoint(&rule.to_string()).is_some() && !is_private_name(&rule.host));
            }
            prop_assert_eq!(granted.routes.len(), run.routes.len());
            prop_assert!(run.routes.iter().all(|route| descriptor.routes.contains(route)));
            prop_assert!(run.secrets.is_empty() || secrets_in_env);
            for name in run.env.keys() {
                prop_assert!(!policy.denied_env.iter().any(|pattern| env_matches(pattern, name)));
            }
            let (got, most) = (run.resources, policy.max_resources);
            prop_assert!(got.cpu_millis <= max.cpu_millis.min(most.cpu_millis).min(asked.resources.cpu_millis));
            prop_assert!(got.memory_mib <= max.memory_mib.min(most.memory_mib).min(asked.resources.memory_mib));
            prop_assert!(got.disk_mib <= max.disk_mib.min(most.disk_mib).min(asked.resources.disk_mib));
            prop_assert!((30..=21600).contains(&run.watchdog.idle_seconds) && (30..=21600).contains(&run.watchdog.first_output_seconds));
            prop_assert!(run.stop.grace_seconds <= policy.watchdog.max_grace_seconds);
            prop_assert!(run.files.iter().all(|file| file.path.split('/').all(|part| !part.is_empty() && part != "..")));
            // Whatever differs was told.
            prop_assert!(!granted.clamped.is_empty() || *run == asked);
        }
    }
}

//! Sign-in at an identity provider, against a provider of our own that also lies. With a real provider and a real browser it is tested end
//! to end, elsewhere.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

#[path = "support/idp.rs"]
mod idp;
mod support;

use std::collections::HashMap;

use axum::body::Body;
use axum::http::Request;
use ckrv_api::{ApiConfig, OidcConfig, OidcIssuer};
use idp::{Behaviour, CLIENT, Idp};
use secrecy::SecretString;
use serde_json::{Value, json};
use support::login::{begin, between, poll};
use support::{Answer, Service};

type Fault = dyn FnOnce(&mut Behaviour);
type Change = fn(&mut Behaviour);

fn issuer(idp: &Idp, more: &str) -> OidcIssuer {
    let text = format!("name = 'corp'\nlabel = 'Corp <SSO>'\nissuer = '{}'\nclient_id = '{CLIENT}'\n{more}", idp.issuer);
    let config: OidcConfig = toml::from_str(&text).unwrap();
    config.check().unwrap();
    OidcIssuer { config, secret: Some(SecretString::from("idp-secret")) }
}

async fn service(idp: &Idp, more: &str) -> Service {
    let issuer = issuer(idp, more);
    Service::start_with(|config: &mut ApiConfig| config.oidc = vec![issuer]).await
}

/// A browser: its cookies.
#[derive(Default)]
struct Browser(HashMap<String, String>);

impl Browser {
    async fn send(&mut self, service: &Service, request: axum::http::request::Builder, body: String) -> Answer {
        let cookies: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = request.header("host", "localhost:7850").header("cookie", cookies.join("; "));
        let answer = service.send(request.body(Body::from(body)).unwrap()).await;
        for set in answer.headers.get_all("set-cookie") {
            let pair = set.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match value {
                "" => drop(self.0.remove(name)),
                value => drop(self.0.insert(name.to_owned(), value.to_owned())),
            }
        }
        answer
    }

    async fn get(&mut self, service: &Service, path: &str) -> Answer {
        self.send(service, Request::get(path), String::new()).await
    }

    async fn post(&mut self, service: &Service, path: &str, form: &str) -> Answer {
        let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        self.send(service, request, form.to_owned()).await
    }

    /// Opens the page and goes off to the provider; gives what the provider is asked.
    async fn depart(&mut self, service: &Service, idp: &Idp, login: &Value) -> HashMap<String, String> {
        let code = login["user_code"].as_str().unwrap();
        let page = self.get(service, &format!("/activate?user_code={code}")).await;
        let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
        let off = self.post(service, "/activate/oidc/start", &format!("user_code={code}&csrf={csrf}&issuer=corp")).await;
        assert_eq!(off.status, 303, "{}", off.text);
        idp.visited(off.header("location"))
    }

    async fn come_back(&mut self, service: &Service, state: &str) -> Answer {
        self.get(service, &format!("/activate/callback?code=good-code&state={state}")).await
    }

    /// Signs in, up to the question.
    async fn sign_in(&mut self, service: &Service, idp: &Idp, login: &Value, change: impl FnOnce(&mut Behaviour)) -> Answer {
        let asked = self.depart(service, idp, login).await;
        idp.set(|behaviour| {
            behaviour.claims = claims(service, idp, &asked["nonce"]);
            change(behaviour);
        });
        self.come_back(service, &asked["state"]).await
    }

    async fn answer(&mut self, service: &Service, action: &str) -> Answer {
        let page = self.get(service, "/activate/oidc/confirm").await;
        assert_eq!(page.status, 200, "{}", page.text);
        let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
        self.post(service, "/activate/oidc/confirm", &format!("csrf={csrf}&action={action}")).await
    }
}

fn claims(service: &Service, idp: &Idp, nonce: &str) -> Value {
    let now = service.clock_now().as_second();
    json!({
        "iss": idp.issuer, "sub": "u-1", "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce,
        "email": "ada@example.org", "email_verified": true, "name": "Ada Lovelace", "groups": ["staff"],
    })
}

async fn users(service: &Service) -> usize {
    service.state.stores.accounts.users().await.unwrap().len()
}

/// Signs in and approves; gives who that login is.
async fn whole(service: &Service, idp: &Idp, change: impl FnOnce(&mut Behaviour)) -> Value {
    let (login, mut browser) = (begin(service).await, Browser::default());
    let back = browser.sign_in(service, idp, &login, change).await;
    assert_eq!(back.status, 303, "{}", back.text);
    assert_eq!(browser.answer(service, "approve").await.status, 200);
    let tokens = poll(service, &login).await.json();
    service.get("/v1/users/me", tokens["access_token"].as_str().unwrap()).await.json()
}

#[tokio::test]
async fn a_sign_in_goes_over_the_provider_to_the_question_and_to_tokens() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let (login, mut browser) = (begin(&service).await, Browser::default());
    let page = browser.get(&service, &format!("/activate?user_code={}", login["user_code"].as_str().unwrap())).await;
    assert!(page.text.contains("Sign in with Corp &lt;SSO&gt;") && !page.text.contains("owner_code"), "{}", page.text);

    let asked = browser.depart(&service, &idp, &login).await;
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", CLIENT),
        ("code_challenge_method", "S256"),
        ("redirect_uri", "http://localhost:7850/activate/callback"),
        ("scope", "openid profile email"),
    ] {
        assert_eq!(asked[name], value);
    }
    idp.set(|behaviour| behaviour.claims = claims(&service, &idp, &asked["nonce"]));
    let back = browser.come_back(&service, &asked["state"]).await;
    assert_eq!((back.status.as_u16(), back.header("location")), (303, "oidc/confirm"), "{}", back.text);

    let question = browser.get(&service, "/activate/oidc/confirm").await;
    for shown in
        [login["user_code"].as_str().unwrap(), "<strong>ckrv</strong>", "Ada Lovelace", "ada@example.org", "Corp &lt;SSO&gt;"]
    {
        assert!(question.text.contains(shown), "{shown}: {}", question.text);
    }
    poll(&service, &login).await.problem(400, "authorization_pending");
    assert!(browser.answer(&service, "approve").await.text.contains("Approved"));
    assert!(!browser.0.contains_key("ckrv_sign_in"), "it is forgotten");
    let tokens = poll(&service, &login).await.json();
    let me = service.get("/v1/users/me", tokens["access_token"].as_str().unwrap()).await.json();
    assert_eq!(
        (&me["email"], &me["name"], &me["subscription_tier"]),
        (&json!("ada@example.org"), &json!("Ada Lovelace"), &json!("free"))
    );
    assert_ne!(me["id"], service.owner.id.to_string());
}

#[tokio::test]
async fn the_browser_can_read_nothing_of_what_it_keeps() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let mut browser = Browser::default();
    let asked = browser.depart(&service, &idp, &begin(&service).await).await;
    let cookie = browser.0["ckrv_sign_in"].clone();
    use base64::Engine;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&cookie).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for hidden in ["verifier", "corp", asked["nonce"].as_str(), asked["state"].as_str()] {
        assert!(!text.contains(hidden), "{hidden}");
    }
    // Any change of it makes it worthless.
    let mut changed = bytes;
    *changed.last_mut().unwrap() ^= 1;
    browser.0.insert("ckrv_sign_in".into(), base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(changed));
    assert_eq!(browser.come_back(&service, &asked["state"]).await.status, 400);
}

#[tokio::test]
async fn over_https_the_cookie_is_bound_to_this_host() {
    let idp = Idp::start().await;
    let issuer = issuer(&idp, "");
    let service = Service::start_with(|config: &mut ApiConfig| {
        config.oidc = vec![issuer];
        config.public_url = "https://localhost:7850/".parse().unwrap();
    })
    .await;
    let mut browser = Browser::default();
    let login = begin(&service).await;
    let page = browser.get(&service, "/activate").await;
    let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
    let form = format!("user_code={}&csrf={csrf}&issuer=corp", login["user_code"].as_str().unwrap());
    let off = browser.post(&service, "/activate/oidc/start", &form).await;
    let set = off.header("set-cookie");
    assert!(set.starts_with("__Host-ckrv_sign_in=") && set.contains("; Path=/;"), "{set}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Secure", "Max-Age=600"] {
        assert!(set.contains(attribute), "{attribute}: {set}");
    }
}

#[tokio::test]
async fn what_a_lying_provider_sends_is_refused_and_makes_nobody() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let other = Idp::start().await;
    let faults: Vec<(&str, Box<Fault>)> = vec![
        ("a bad signature", Box::new(|behaviour| behaviour.signs_with = 1)),
        ("a wrong nonce", Box::new(|behaviour| behaviour.claims["nonce"] = json!("other"))),
        ("no nonce", Box::new(|behaviour| drop(behaviour.claims.as_object_mut().unwrap().remove("nonce")))),
        ("a wrong audience", Box::new(|behaviour| behaviour.claims["aud"] = json!("somebody-else"))),
        ("a second audience", Box::new(|behaviour| behaviour.claims["aud"] = json!([CLIENT, "somebody-else"]))),
        ("another party", Box::new(|behaviour| behaviour.claims["azp"] = json!("somebody-else"))),
        ("another issuer", Box::new(move |behaviour| behaviour.claims["iss"] = json!(other.issuer))),
        (
            "an expired token",
            Box::new(|behaviour| behaviour.claims["exp"] = json!(behaviour.claims["iat"].as_i64().unwrap() - 1)),
        ),
        ("another access token", Box::new(|behaviour| behaviour.claims["at_hash"] = json!("AAAAAAAAAAAAAAAAAAAAAA"))),
        ("no signature", Box::new(|behaviour| behaviour.alg = "none".into())),
        ("the client's secret as key", Box::new(|behaviour| behaviour.alg = "HS256".into())),
        ("an unknown key", Box::new(|behaviour| behaviour.kid = "key-9".into())),
    ];
    for (fault, change) in faults {
        let (login, mut browser) = (begin(&service).await, Browser::default());
        let back = browser.sign_in(&service, &idp, &login, change).await;
        assert!(back.status == 403 && back.text.contains("could not be verified"), "{fault}: {} {}", back.status, back.text);
        assert_eq!(browser.get(&service, "/activate/oidc/confirm").await.status, 400, "{fault}");
        poll(&service, &login).await.problem(400, "authorization_pending");
        idp.set(|behaviour| {
            behaviour.signs_with = 0;
            behaviour.alg = "EdDSA".into();
            behaviour.kid = "key-0".into();
        });
    }
    assert_eq!(users(&service).await, 1, "only the owner");
    whole(&service, &idp, |_| {}).await;
}

#[tokio::test]
async fn a_new_key_is_fetched_and_invented_ones_do_not_make_us_ask_again_and_again() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    whole(&service, &idp, |_| {}).await;
    assert_eq!(idp.key_requests(), 1);
    service.advance(61);
    let rotate = |behaviour: &mut Behaviour| {
        behaviour.signs_with = 1;
        behaviour.kid = "key-1".into();
        behaviour.shown = vec![0, 1];
    };
    whole(&service, &idp, rotate).await;
    assert_eq!(idp.key_requests(), 2);
    for _ in 0..3 {
        let login = begin(&service).await;
        let back = Browser::default().sign_in(&service, &idp, &login, |behaviour| behaviour.kid = "invented".into()).await;
        assert_eq!(back.status, 403);
    }
    assert_eq!(idp.key_requests(), 2, "within a minute");
}

#[tokio::test]
async fn who_may_not_come_in_is_told_why() {
    let idp = Idp::start().await;
    let service = service(&idp, "allowed_domains = ['example.org']").await;
    let faults: Vec<(&str, Change)> = vec![
        ("has not verified", |behaviour| behaviour.claims["email_verified"] = json!(false)),
        ("has not verified", |behaviour| drop(behaviour.claims.as_object_mut().unwrap().remove("email_verified"))),
        ("has no e-mail", |behaviour| drop(behaviour.claims.as_object_mut().unwrap().remove("email"))),
        ("domain may not", |behaviour| behaviour.claims["email"] = json!("ada@example.org.evil.example")),
        ("domain may not", |behaviour| behaviour.claims["email"] = json!("ada@sub.example.org")),
        ("domain may not", |behaviour| behaviour.claims["email"] = json!("\"x@example.org\"@evil.example")),
    ];
    for (text, change) in faults {
        let login = begin(&service).await;
        let back = Browser::default().sign_in(&service, &idp, &login, change).await;
        assert!(back.status == 403 && back.text.contains(text), "{text}: {} {}", back.status, back.text);
    }
    assert_eq!(users(&service).await, 1);
    let day = service.state.stores.accounts.audit_of("2026-03-10").await.unwrap();
    assert_eq!(day.iter().filter(|record| record.action == "login.refuse").count(), 6);

    let me = whole(&service, &idp, |behaviour| behaviour.claims["email"] = json!("ada@EXAMPLE.org")).await;
    let id = me["id"].as_str().unwrap().parse().unwrap();
    let mut user = service.state.stores.accounts.user(id).await.unwrap().unwrap();
    user.disabled = true;
    service.state.stores.accounts.put_user(&user).await.unwrap();
    let login = begin(&service).await;
    let back = Browser::default().sign_in(&service, &idp, &login, |_| {}).await;
    assert!(back.status == 403 && back.text.contains("disabled"), "{}", back.text);
}

#[tokio::test]
async fn a_user_is_the_issuers_subject_and_never_an_address() {
    let idp = Idp::start().await;
    let service = service(&idp, "admin_group = 'ops'").await;
    let first = whole(&service, &idp, |behaviour| behaviour.claims["groups"] = json!(["staff", "ops"])).await;
    let role =
        async |id: &Value| service.state.stores.accounts.user(id.as_str().unwrap().parse().unwrap()).await.unwrap().unwrap().role;
    assert_eq!(role(&first["id"]).await, ckrv_store::Role::Admin);
    let renamed = whole(&service, &idp, |behaviour| {
        behaviour.claims["email"] = json!("a.lovelace@example.org");
        behaviour.claims["name"] = json!("A. Lovelace");
    })
    .await;
    assert_eq!((&renamed["id"], &renamed["email"]), (&first["id"], &json!("a.lovelace@example.org")));
    assert_eq!(role(&first["id"]).await, ckrv_store::Role::User, "out of the group");
    // Whoever has the same address is somebody else.
    let second = whole(&service, &idp, |behaviour| {
        behaviour.claims["sub"] = json!("u-2");
        behaviour.claims["email"] = json!("a.lovelace@example.org");
    })
    .await;
    assert_eq!(second["email"], "a.lovelace@example.org");
    assert_ne!(second["id"], first["id"]);
}

#[tokio::test]
async fn what_the_id_token_lacks_comes_from_the_user_info() {
    let idp = Idp::start().await;
    let service = service(&idp, "admin_group = 'ops'\ngroup_claim = 'roles'").await;
    let info = json!({"sub": "u-1", "email": "ada@example.org", "email_verified": true, "name": "Ada", "roles": ["ops"]});
    idp.set(|behaviour| behaviour.user_info = Some(info.clone()));
    let bare = |behaviour: &mut Behaviour| {
        for name in ["email", "email_verified", "name", "groups"] {
            behaviour.claims.as_object_mut().unwrap().remove(name);
        }
    };
    let me = whole(&service, &idp, bare).await;
    assert_eq!((&me["email"], &me["name"]), (&json!("ada@example.org"), &json!("Ada")));
    // Somebody else's user info.
    idp.set(|behaviour| behaviour.user_info = Some(support::with(info, "sub", json!("u-2"))));
    let login = begin(&service).await;
    assert_eq!(Browser::default().sign_in(&service, &idp, &login, bare).await.status, 403);
}

#[tokio::test]
async fn only_the_browser_that_went_off_comes_back_and_only_in_time() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let login = begin(&service).await;
    let mut browser = Browser::default();
    let asked = browser.depart(&service, &idp, &login).await;
    idp.set(|behaviour| behaviour.claims = claims(&service, &idp, &asked["nonce"]));
    let state = asked["state"].as_str();
    assert_eq!(Browser::default().come_back(&service, state).await.status, 400, "another browser");
    assert_eq!(browser.come_back(&service, "other-state").await.status, 400);
    assert_eq!(browser.get(&service, "/activate/callback?code=good-code").await.status, 400, "no state");
    let mut other = Browser::default();
    other.depart(&service, &idp, &begin(&service).await).await;
    assert_eq!(other.come_back(&service, state).await.status, 400, "another browser's sign-in");
    let elsewhere = Service::start_with(|config: &mut ApiConfig| {
        config.oidc = vec![issuer(&idp, "")];
        config.hmac_key = SecretString::from("z".repeat(43));
    })
    .await;
    assert_eq!(browser.come_back(&elsewhere, state).await.status, 400, "another server's key");
    assert_eq!(idp.token_requests(), 0, "none of these went to the provider");
    service.advance(600);
    assert_eq!(browser.come_back(&service, state).await.status, 400, "too late");
    assert_eq!(users(&service).await, 1);
}

#[tokio::test]
async fn an_answer_of_another_issuer_is_refused() {
    let idp = Idp::start().await;
    idp.set(|behaviour| behaviour.promises_iss = true);
    let service = service(&idp, "").await;
    for (iss, expected) in [("", 403), ("&iss=https://evil.example", 403), (&format!("&iss={}", idp.issuer), 303)] {
        let (login, mut browser) = (begin(&service).await, Browser::default());
        let asked = browser.depart(&service, &idp, &login).await;
        idp.set(|behaviour| behaviour.claims = claims(&service, &idp, &asked["nonce"]));
        let path = format!("/activate/callback?code=good-code&state={}{iss}", asked["state"].as_str());
        assert_eq!(browser.get(&service, &path).await.status, expected, "{iss}");
    }
}

#[tokio::test]
async fn the_question_takes_its_own_form_only_and_no_is_no() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let (login, mut browser) = (begin(&service).await, Browser::default());
    browser.sign_in(&service, &idp, &login, |_| {}).await;
    let page = browser.get(&service, "/activate/oidc/confirm").await;
    let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
    assert_eq!(browser.post(&service, "/activate/oidc/confirm", "action=approve").await.status, 403, "no token");
    let mut other = Browser::default();
    other.sign_in(&service, &idp, &begin(&service).await, |_| {}).await;
    let stolen = format!("csrf={csrf}&action=approve");
    assert_eq!(other.post(&service, "/activate/oidc/confirm", &stolen).await.status, 403, "another browser's token");
    assert_eq!(Browser::default().post(&service, "/activate/oidc/confirm", &stolen).await.status, 400, "no cookie");
    let request = Request::post("/activate/oidc/confirm").header("origin", "http://evil.example");
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(browser.send(&service, request, stolen.clone()).await.status, 403, "another site");
    poll(&service, &login).await.problem(400, "authorization_pending");
    assert!(browser.answer(&service, "deny").await.text.contains("Denied"));
    service.advance(5);
    poll(&service, &login).await.problem(400, "access_denied");
    assert_eq!(browser.post(&service, "/activate/oidc/confirm", &stolen).await.status, 400, "it was answered");
}

#[tokio::test]
async fn the_owners_code_is_worth_nothing_where_people_sign_in_and_errors_have_their_pages() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let login = begin(&service).await;
    let (code, mut browser) = (login["user_code"].as_str().unwrap(), Browser::default());
    let page = browser.get(&service, "/activate").await;
    let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
    let form = format!("user_code={code}&owner_code={}&csrf={csrf}&action=approve", service.last_code());
    assert_eq!(browser.post(&service, "/activate", &form).await.status, 403);
    poll(&service, &login).await.problem(400, "authorization_pending");
    for (form, status) in [
        (format!("user_code={code}&issuer=corp"), 403),
        (format!("user_code={code}&issuer=other&csrf={csrf}"), 404),
        (format!("user_code=BCDF-2222&issuer=corp&csrf={csrf}"), 404),
    ] {
        let answer = browser.post(&service, "/activate/oidc/start", &form).await;
        assert!(answer.status == status && answer.header("content-type").starts_with("text/html"), "{form}: {}", answer.text);
    }
    let asked = browser.depart(&service, &idp, &login).await;
    let path = format!("/activate/callback?error=access_denied&error_description=%3Cscript%3E&state={}", asked["state"].as_str());
    let answer = browser.get(&service, &path).await;
    assert!(answer.status == 403 && answer.text.contains("cancelled") && !answer.text.contains("script"), "{}", answer.text);
}

#[tokio::test]
async fn a_provider_that_is_away_is_a_page_too() {
    let idp = Idp::start().await;
    let service = service(&idp, "").await;
    let login = begin(&service).await;
    let mut browser = Browser::default();
    let page = browser.get(&service, "/activate").await;
    let csrf = between(&page.text, "name=\"csrf\" value=\"", "\"").to_owned();
    drop(idp);
    let form = format!("user_code={}&csrf={csrf}&issuer=corp", login["user_code"].as_str().unwrap());
    let answer = browser.post(&service, "/activate/oidc/start", &form).await;
    assert!(answer.status == 502 && answer.text.contains("does not answer"), "{}", answer.text);
}

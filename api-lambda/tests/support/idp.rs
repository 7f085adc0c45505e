//! A small identity provider of the tests' own, for what a real one never does: it signs whatever it is told to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::core::{CoreEdDsaPrivateSigningKey, CoreJwsSigningAlgorithm};
use openidconnect::{JsonWebKeyId, PrivateSigningKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const CLIENT: &str = "ckrv";

/// What the next token holds, and how it is signed.
pub struct Behaviour {
    pub claims: Value,
    /// The header's `kid`, and the key that really signs.
    pub kid: String,
    pub signs_with: usize,
    /// The header's `alg`; with any other than EdDSA the signature is `signature`.
    pub alg: String,
    pub signature: Vec<u8>,
    /// Keys that the key set shows.
    pub shown: Vec<usize>,
    pub user_info: Option<Value>,
    /// RFC 9207.
    pub promises_iss: bool,
    challenge: String,
    pub key_requests: u32,
    pub token_requests: u32,
}

pub struct Idp {
    pub issuer: String,
    behaviour: Arc<Mutex<Behaviour>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Idp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Shared {
    issuer: String,
    keys: Arc<Vec<CoreEdDsaPrivateSigningKey>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Idp {
    /// Signs with key 0 of two, and shows that one.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let key = |index: usize| {
            // PKCS #8 around 32 random bytes.
            let start = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
            let der = [start.as_slice(), &rand::random::<[u8; 32]>()].concat();
            let base64 = base64::engine::general_purpose::STANDARD.encode(der);
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
            CoreEdDsaPrivateSigningKey::from_ed25519_pem(&pem, Some(JsonWebKeyId::new(format!("key-{index}")))).unwrap()
        };
        let behaviour = Arc::new(Mutex::new(Behaviour {
            claims: json!({}),
            kid: "key-0".into(),
            signs_with: 0,
            alg: "EdDSA".into(),
            signature: Vec::new(),
            shown: vec![0],
            user_info: None,
            promises_iss: false,
            challenge: String::new(),
            key_requests: 0,
            token_requests: 0,
        }));
        let shared = Shared { issuer: issuer.clone(), keys: Arc::new(vec![key(0), key(1)]), behaviour: behaviour.clone() };
        let app = axum::Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(keys))
            .route("/token", post(token))
            .route("/me", get(user_info))
            .with_state(shared);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { issuer, behaviour, task }
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    pub fn key_requests(&self) -> u32 {
        self.behaviour.lock().unwrap().key_requests
    }

    pub fn token_requests(&self) -> u32 {
        self.behaviour.lock().unwrap().token_requests
    }

    /// What the browser was sent here with.
    pub fn visited(&self, location: &str) -> HashMap<String, String> {
        let url = url::Url::parse(location).unwrap();
        assert!(location.starts_with(&format!("{}/authorize?", self.issuer)), "{location}");
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        self.behaviour.lock().unwrap().challenge = query["code_challenge"].clone();
        query
    }
}

async fn discovery(State(shared): State<Shared>) -> axum::Json<Value> {
    let (issuer, behaviour) = (&shared.issuer, shared.behaviour.lock().unwrap());
    let mut document = json!({
        "issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"), "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"), "response_types_supported": ["code"], "subject_types_supported": ["public"],
        // More than anybody should take.
        "id_token_signing_alg_values_supported": ["EdDSA", "HS256", "none"],
        "authorization_response_iss_parameter_supported": behaviour.promises_iss,
    });
    if behaviour.user_info.is_some() {
        document["userinfo_endpoint"] = json!(format!("{issuer}/me"));
    }
    axum::Json(document)
}

async fn keys(State(shared): State<Shared>) -> axum::Json<Value> {
    let mut behaviour = shared.behaviour.lock().unwrap();
    behaviour.key_requests += 1;
    let keys: Vec<Value> =
        behaviour.shown.iter().map(|index| serde_json::to_value(shared.keys[*index].as_verification_key()).unwrap()).collect();
    axum::Json(json!({ "keys": keys }))
}

/// As strict as a real one: code and PKCE verifier, and the client's secret.
async fn token(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Result<axum::Json<Value>, (StatusCode, axum::Json<Value>)> {
    let mut behaviour = shared.behaviour.lock().unwrap();
    behaviour.token_requests += 1;
    let verifier = form.get("code_verifier").map(|verifier| URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)));
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{CLIENT}:idp-secret")));
    let knows_us = headers.get("authorization").is_some_and(|value| value == basic.as_str());
    if form.get("code").map(String::as_str) != Some("good-code") || verifier.as_ref() != Some(&behaviour.challenge) || !knows_us {
        return Err((StatusCode::BAD_REQUEST, axum::Json(json!({"error": "invalid_grant"}))));
    }
    let header = json!({"alg": behaviour.alg, "kid": behaviour.kid, "typ": "JWT"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&behaviour.claims));
    let signature = if behaviour.alg == "EdDSA" {
        shared.keys[behaviour.signs_with].sign(&CoreJwsSigningAlgorithm::EdDsa, signed.as_bytes()).unwrap()
    } else if behaviour.alg == "HS256" {
        use hmac::{KeyInit, Mac};
        let mut mac = hmac::Hmac::<Sha256>::new_from_slice(b"idp-secret").unwrap();
        mac.update(signed.as_bytes());
        mac.finalize().into_bytes().to_vec()
    } else {
        behaviour.signature.clone()
    };
    let id_token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    Ok(axum::Json(json!({"access_token": "idp-access", "token_type": "Bearer", "expires_in": 60, "id_token": id_token})))
}

async fn user_info(State(shared): State<Shared>, headers: HeaderMap) -> Result<axum::Json<Value>, StatusCode> {
    let knows_us = headers.get("authorization").is_some_and(|value| value == "Bearer idp-access");
    let info = shared.behaviour.lock().unwrap().user_info.clone().filter(|_| knows_us);
    info.map(axum::Json).ok_or(StatusCode::UNAUTHORIZED)
}

//! One identity provider: its discovered document and keys, the way to its sign-in page, and what comes back.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use ckrv_core::Timestamp;
use jiff::SignedDuration;
use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClient, CoreClientAuthMethod, CoreGenderClaim, CoreGrantType, CoreIdToken,
    CoreIdTokenClaims, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm,
    CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType, CoreTokenResponse,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AdditionalProviderMetadata, AuthType, AuthenticationFlow, AuthorizationCode,
    ClaimsVerificationError, ClientId, ClientSecret, CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, IssuerUrl,
    JsonWebKeySet, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier, ProviderMetadata, RedirectUrl, Scope,
    SignatureVerificationError, TokenResponse as _, UserInfoClaims,
};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use url::Url;

use super::claims::{AnyClaims, Identity, is_complete};
use super::config::{OidcConfig, OidcIssuer};
use super::http::Http;

/// How long a provider's document and keys are taken for current.
const CACHED: SignedDuration = SignedDuration::from_hours(1);
/// An unknown key makes us look again, but not more often than this: anybody can send us tokens with invented key ids.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_mins(1);
/// What signs an ID token. No shared secrets, and never `none`, whatever the provider's document says.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct MoreMetadata {
    /// RFC 9207.
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for MoreMetadata {}

type Metadata = ProviderMetadata<
    MoreMetadata,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

type Client = CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// What went wrong with a sign-in, for the log; a page says less.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(crate) struct Provider {
    issuer: OidcIssuer,
    http: Http,
    found: Mutex<Option<Found>>,
}

#[derive(Clone)]
struct Found {
    at: Timestamp,
    metadata: Arc<Metadata>,
}

/// The way to a provider's sign-in page, and what must come back.
pub(super) struct Departure {
    pub url: Url,
    pub state: String,
    pub nonce: String,
    pub verifier: String,
}

/// What the browser brought back, with what we remembered.
pub(super) struct Return<'a> {
    pub code: &'a str,
    pub iss: Option<&'a str>,
    pub nonce: &'a str,
    pub verifier: &'a str,
    pub redirect: &'a str,
}

impl Provider {
    pub(super) fn new(issuer: OidcIssuer) -> Self {
        Self { issuer, http: Http::default(), found: Mutex::default() }
    }

    pub(crate) fn config(&self) -> &OidcConfig {
        &self.issuer.config
    }

    pub(crate) fn name(&self) -> &str {
        &self.config().name
    }

    pub(crate) fn label(&self) -> &str {
        self.config().label.as_deref().unwrap_or(&self.config().name)
    }

    pub(super) async fn depart(&self, redirect: &str, now: Timestamp) -> Result<Departure, Failure> {
        let metadata = self.metadata(now).await?;
        let client = self.client(&metadata, redirect)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let flow = AuthenticationFlow::<CoreResponseType>::AuthorizationCode;
        let request = client.authorize_url(flow, CsrfToken::new_random, Nonce::new_random).set_pkce_challenge(challenge);
        // `openid` is in it by itself.
        let scopes = self.config().scopes.iter().filter(|scope| *scope != "openid").cloned().map(Scope::new);
        let (url, state, nonce) = request.add_scopes(scopes).url();
        Ok(Departure { url, state: state.into_secret(), nonce: nonce.secret().clone(), verifier: verifier.into_secret() })
    }

    /// Exchanges the code and verifies what comes.
    pub(super) async fn arrive(&self, back: &Return<'_>, now: Timestamp) -> Result<Identity, Failure> {
        let metadata = self.metadata(now).await?;
        let promised = metadata.additional_metadata().authorization_response_iss_parameter_supported;
        match back.iss {
            Some(iss) if iss != self.config().issuer => return Err("the answer is of another issuer (`iss`)".into()),
            None if promised => return Err("the answer lacks `iss`, which this provider always sends".into()),
            _ => {}
        }
        let client = self.client(&metadata, back.redirect)?;
        let exchange = client.exchange_code(AuthorizationCode::new(back.code.to_owned()))?;
        let exchange = exchange.set_pkce_verifier(PkceCodeVerifier::new(back.verifier.to_owned()));
        let response: CoreTokenResponse = exchange.request_async(&self.http).await.map_err(flat)?;
        let token = response.id_token().ok_or("the provider sent no ID token")?;
        let client = self.verify(client, &metadata, token, back, now).await?;
        self.identify(&client, token, &response, back, now).await
    }

    /// Verifies, with fresh keys if the token names one that we don't know.
    async fn verify(
        &self,
        client: Client,
        metadata: &Metadata,
        token: &CoreIdToken,
        back: &Return<'_>,
        now: Timestamp,
    ) -> Result<Client, Failure> {
        let unknown = ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey);
        match claims(&client, token, back.nonce, now) {
            Ok(_) => Ok(client),
            Err(error) if error == unknown => {
                let fresh = self.fresh_keys(metadata, now).await?;
                Ok(self.client(&fresh, back.redirect)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn identify(
        &self,
        client: &Client,
        token: &CoreIdToken,
        response: &CoreTokenResponse,
        back: &Return<'_>,
        now: Timestamp,
    ) -> Result<Identity, Failure> {
        let verified = claims(client, token, back.nonce, now)?;
        if let Some(expected) = verified.access_token_hash() {
            let verifier = client.id_token_verifier();
            let actual =
                AccessTokenHash::from_token(response.access_token(), token.signing_alg()?, token.signing_key(&verifier)?)?;
            if actual != *expected {
                return Err("the access token is not the one of the ID token".into());
            }
        }
        // `openidconnect` leaves this to us.
        if verified.authorized_party().is_some_and(|party| party.as_str() != self.config().client_id) {
            return Err("the ID token was issued to another client (`azp`)".into());
        }
        let mut all = payload(token)?;
        if !is_complete(&all, self.config()) && client.user_info_url().is_some() {
            for (name, value) in self.user_info(client, response.access_token().clone(), verified).await? {
                all.entry(name).or_insert(value);
            }
        }
        Ok(Identity::read(verified.subject().as_str(), &all, self.config()))
    }

    /// Many providers keep e-mail and groups out of the ID token where there is this.
    async fn user_info(
        &self,
        client: &Client,
        token: AccessToken,
        verified: &CoreIdTokenClaims,
    ) -> Result<Map<String, Value>, Failure> {
        let request = client.user_info(token, Some(verified.subject().clone()))?;
        let info: UserInfoClaims<AnyClaims, CoreGenderClaim> = request.request_async(&self.http).await.map_err(flat)?;
        match serde_json::to_value(&info)? {
            Value::Object(claims) => Ok(claims),
            _ => Err("the provider's user info is no object".into()),
        }
    }

    async fn metadata(&self, now: Timestamp) -> Result<Arc<Metadata>, Failure> {
        // Held meanwhile: of many sign-ins at once one asks.
        let mut found = self.found.lock().await;
        if let Some(found) = found.as_ref()
            && now.duration_since(found.at) < CACHED
        {
            return Ok(found.metadata.clone());
        }
        let issuer = IssuerUrl::new(self.config().issuer.clone())?;
        let metadata: Arc<Metadata> = Arc::new(Metadata::discover_async(issuer, &self.http).await.map_err(flat)?);
        *found = Some(Found { at: now, metadata: metadata.clone() });
        Ok(metadata)
    }

    async fn fresh_keys(&self, seen: &Metadata, now: Timestamp) -> Result<Arc<Metadata>, Failure> {
        let mut found = self.found.lock().await;
        let current = found.as_ref().ok_or("the provider is not known")?;
        // Somebody else may have looked while we waited.
        if current.metadata.jwks() != seen.jwks() {
            return Ok(current.metadata.clone());
        }
        if now.duration_since(current.at) < LOOK_AGAIN {
            return Err("the ID token names a key that the provider did not have a moment ago".into());
        }
        let keys = JsonWebKeySet::fetch_async(seen.jwks_uri(), &self.http).await.map_err(flat)?;
        let metadata = Arc::new((*current.metadata).clone().set_jwks(keys));
        *found = Some(Found { at: now, metadata: metadata.clone() });
        Ok(metadata)
    }

    fn client(&self, metadata: &Metadata, redirect: &str) -> Result<Client, Failure> {
        let secret = self.issuer.secret.as_ref().map(|secret| ClientSecret::new(secret.expose_secret().to_owned()));
        let methods = metadata.token_endpoint_auth_methods_supported();
        let posts = methods.is_some_and(|methods| {
            methods.contains(&CoreClientAuthMethod::ClientSecretPost)
                && !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
        });
        let client = CoreClient::from_provider_metadata(metadata.clone(), ClientId::new(self.config().client_id.clone()), secret);
        let client = if posts { client.set_auth_type(AuthType::RequestBody) } else { client };
        Ok(client.set_redirect_uri(RedirectUrl::new(redirect.to_owned())?))
    }
}

fn claims<'t>(
    client: &Client,
    token: &'t CoreIdToken,
    nonce: &str,
    now: Timestamp,
) -> Result<&'t CoreIdTokenClaims, ClaimsVerificationError> {
    let now = DateTime::from_timestamp(now.as_second(), 0).unwrap_or_default();
    let verifier = client.id_token_verifier().set_allowed_algs(ALGORITHMS).set_time_fn(move || now);
    token.claims(&verifier, &Nonce::new(nonce.to_owned()))
}

/// All claims of a token whose signature was verified; the typed ones leave out those that a provider adds.
fn payload(token: &CoreIdToken) -> Result<Map<String, Value>, Failure> {
    let text = token.to_string();
    let payload = text.split('.').nth(1).ok_or("the ID token has no claims")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='))?)?)
}

/// An error with its causes in one line; the answers that some errors hold may hold tokens, and stay out.
fn flat(error: impl std::error::Error) -> Failure {
    crate::error::chain(&error).into()
}

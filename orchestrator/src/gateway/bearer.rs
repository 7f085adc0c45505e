//! By what a job runner proves which attempt it is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret as _, SecretString};

/// Is told each token before it is used.
pub type OnToken = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Clone)]
pub(super) enum Bearer {
    Fixed(SecretString),
    File(Arc<TokenFile>),
}

/// A token that the kubelet replaces long before it runs out.
pub(super) struct TokenFile {
    path: PathBuf,
    known: Mutex<SecretString>,
    on_token: OnToken,
}

impl Bearer {
    pub fn fixed(token: SecretString, on_token: &OnToken) -> Self {
        on_token(token.expose_secret());
        Self::Fixed(token)
    }

    pub fn file(path: PathBuf, on_token: OnToken) -> Self {
        Self::File(Arc::new(TokenFile { path, known: Mutex::new(SecretString::from("")), on_token }))
    }

    /// The token as it is now. The file lies in memory and is small: it is read each time.
    pub fn token(&self) -> SecretString {
        match self {
            Self::Fixed(token) => token.clone(),
            Self::File(file) => file.token(),
        }
    }
}

impl TokenFile {
    fn token(&self) -> SecretString {
        let read = std::fs::read_to_string(&self.path).map(zeroize::Zeroizing::new);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &read {
            Ok(text) if text.trim() == known.expose_secret() => {}
            Ok(text) => {
                (self.on_token)(text.trim());
                *known = SecretString::from(text.trim());
            }
            // The last one is good for a while.
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "the gateway's token can't be read"),
        }
        known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_token_is_told_once_and_used_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let telling = Arc::clone(&told);
        let bearer = Bearer::file(path.clone(), Arc::new(move |token| telling.lock().unwrap().push(token.to_owned())));
        assert_eq!(bearer.token().expose_secret(), "one");
        assert_eq!(bearer.token().expose_secret(), "one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(bearer.token().expose_secret(), "two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bearer.token().expose_secret(), "two", "the last one that was seen");
        assert_eq!(*told.lock().unwrap(), ["one", "two"]);
    }
}

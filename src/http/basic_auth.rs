//! Users and their passwords, which are kept as bcrypt hashes.
//!
//! Comparing takes tens of milliseconds on purpose, and Prometheus shows its password with every request. So
//! what was found once is remembered, right passwords apart from wrong ones: whoever tries passwords cannot
//! push those out that are in use, nor get more than one processor, nor every connection there may be: beyond a
//! number that wait for their turn, the next ones are told to come again.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bcrypt::{BcryptError, HashParts};
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Answers remembered of either kind; then all of them are forgotten.
const CACHE_CAPACITY: usize = 100;
/// Passwords that wait for their turn: more than Prometheus has shards, all of which begin with the same one.
const MAX_WAITING: usize = 64;
/// Costs of bcrypt. Beyond, a single look would take a processor for a minute.
const COSTS: std::ops::RangeInclusive<u32> = 4..=20;

/// Why a hash is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not of this kind.
    #[error("not a bcrypt hash, as htpasswd -nBC 10 \"\" makes it")]
    Hash(#[source] BcryptError),
    /// Too slow, or too fast to be safe.
    #[error("the cost of the hash is {0}: it has to be in {least} to {most}", least = COSTS.start(), most = COSTS.end())]
    Cost(u32),
}

/// What is found of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordCheck {
    /// It is the user's.
    Valid,
    /// It is not, or there is no such user.
    Invalid,
    /// Too many others wait for an answer.
    Busy,
}

/// Who has a password.
pub struct Users {
    hashes: BTreeMap<String, String>,
    cache: Mutex<PasswordCache>,
    /// Held while a password is compared: one at a time, it is work for a processor.
    comparing: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            hashes: BTreeMap::new(),
            cache: Mutex::default(),
            comparing: Arc::new(Semaphore::new(1)),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }
}

/// Digests of a name and a password.
#[derive(Default)]
struct PasswordCache {
    valid: HashSet<[u8; 32]>,
    invalid: HashSet<[u8; 32]>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.hashes.keys()).finish()
    }
}

impl Users {
    /// Adds a user.
    ///
    /// # Errors
    /// [`Error`] when the hash is none.
    pub fn add(&mut self, name: String, hash: String) -> Result<(), Error> {
        let cost = hash.parse::<HashParts>().map_err(Error::Hash)?.get_cost();
        if !COSTS.contains(&cost) {
            return Err(Error::Cost(cost));
        }
        self.hashes.insert(name, hash);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Is this an `Authorization` of one of them?
    pub async fn authenticate(&self, authorization: Option<&HeaderValue>) -> PasswordCheck {
        let Some((name, password)) = authorization.and_then(credentials) else {
            return PasswordCheck::Invalid;
        };
        let mut digest = Sha256::new();
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(&name);
        digest.update(&password);
        let digest: [u8; 32] = digest.finalize().into();
        if let Some(check) = self.cached_check(&digest) {
            return check;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return PasswordCheck::Busy };
        let permit = self.comparing.clone().acquire_owned().await.expect("it is never closed");
        // Somebody with the same password may have been first.
        if let Some(check) = self.cached_check(&digest) {
            return check;
        }
        let hash = self.hashes.get(&name);
        let user_exists = hash.is_some();
        // For a name that is not known it takes as long as for the slowest that is.
        let slowest = self
            .hashes
            .values()
            .max_by_key(|hash| hash.parse::<HashParts>().map_or(0, |parts| parts.get_cost()));
        let Some(hash) = hash.or(slowest).cloned() else { return PasswordCheck::Invalid };
        // Whoever hangs up does not end it, and so takes its turn along.
        let compare = move || (bcrypt::verify(password, &hash).unwrap_or(false), permit);
        let Ok((is_same, _permit)) = tokio::task::spawn_blocking(compare).await else {
            return PasswordCheck::Busy;
        };
        let check = if is_same && user_exists { PasswordCheck::Valid } else { PasswordCheck::Invalid };
        self.cache_check(digest, check);
        check
    }

    fn cached_check(&self, digest: &[u8; 32]) -> Option<PasswordCheck> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match (cache.valid.contains(digest), cache.invalid.contains(digest)) {
            (true, _) => Some(PasswordCheck::Valid),
            (_, true) => Some(PasswordCheck::Invalid),
            _ => None,
        }
    }

    fn cache_check(&self, digest: [u8; 32], check: PasswordCheck) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let digests = if check == PasswordCheck::Valid { &mut cache.valid } else { &mut cache.invalid };
        if digests.len() >= CACHE_CAPACITY {
            digests.clear();
        }
        digests.insert(digest);
    }
}

/// The name and the password of `Basic ...` (RFC 7617).
fn credentials(authorization: &HeaderValue) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let colon = text.iter().position(|byte| *byte == b':')?;
    let name = String::from_utf8(text[..colon].to_vec()).ok()?;
    Some((name, text[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let mut users = Users::default();
        for name in ["ann", "bob"] {
            users.add(name.into(), bcrypt::hash(format!("{name}'s"), 4).expect("a hash")).expect("a hash");
        }
        users
    }

    fn basic(text: &str) -> HeaderValue {
        format!("Basic {}", BASE64_STANDARD.encode(text)).parse().expect("a header")
    }

    #[tokio::test]
    async fn only_users_with_their_own_password_are_admitted() {
        let users = users();
        for (text, is_valid) in [
            ("ann:ann's", true),
            ("bob:bob's", true),
            ("ann:bob's", false),
            ("ann:", false),
            ("ann:ann's:", false),
            (":ann's", false),
            ("eve:ann's", false),
            ("annann's", false),
        ] {
            for _ in 0..2 {
                assert_eq!(
                    users.authenticate(Some(&basic(text))).await == PasswordCheck::Valid,
                    is_valid,
                    "{text}"
                );
            }
        }
        assert_eq!(users.authenticate(None).await, PasswordCheck::Invalid);
        for header in ["", "Basic", "Basic ", "Basic !", "Bearer YW5uOmFubidz", "Basic\u{a0}x"] {
            let header = HeaderValue::from_str(header).unwrap_or(HeaderValue::from_static("x"));
            assert_eq!(users.authenticate(Some(&header)).await, PasswordCheck::Invalid, "{header:?}");
        }
        let lower: HeaderValue =
            format!("basic  {}", BASE64_STANDARD.encode("ann:ann's")).parse().expect("text");
        assert_eq!(
            users.authenticate(Some(&lower)).await,
            PasswordCheck::Valid,
            "the scheme's case does not matter"
        );
        assert_eq!(Users::default().authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Invalid);
    }

    /// What is remembered is bounded, and wrong passwords do not push right ones out.
    #[tokio::test]
    async fn valid_passwords_stay_cached_while_others_are_tried() {
        let users = users();
        assert_eq!(users.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
        for i in 0..2 * CACHE_CAPACITY {
            assert_eq!(users.authenticate(Some(&basic(&format!("ann:{i}")))).await, PasswordCheck::Invalid);
        }
        let cache = users.cache.lock().expect("no panic");
        assert_eq!(cache.valid.len(), 1);
        assert!(cache.invalid.len() <= CACHE_CAPACITY);
    }

    /// Many are told to come again, also where each hangs up at once, and who is known is let in.
    #[tokio::test]
    async fn a_flood_of_wrong_passwords_uses_one_processor_and_is_bounded() {
        let users = Arc::new(users());
        assert_eq!(users.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
        let permit = users.comparing.clone().acquire_owned().await.expect("open");
        let flood = |i: usize| {
            let users = users.clone();
            tokio::spawn(async move { users.authenticate(Some(&basic(&format!("ann:{i}")))).await })
        };
        let flood: Vec<_> = (0..MAX_WAITING + 10).map(flood).collect();
        while users.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(users.authenticate(Some(&basic("bob:x"))).await, PasswordCheck::Busy);
        assert_eq!(users.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
        drop(permit);
        let mut checks = Vec::new();
        for task in flood {
            checks.push(task.await.expect("no panic"));
        }
        let count = |expected| checks.iter().filter(|check| **check == expected).count();
        assert_eq!((count(PasswordCheck::Invalid), count(PasswordCheck::Busy)), (MAX_WAITING, 10));

        let mut slow = Users::default();
        slow.add("ann".into(), bcrypt::hash("ann's", 10).expect("a hash")).expect("a hash");
        let slow = Arc::new(slow);
        let slow_users = slow.clone();
        let request = tokio::spawn(async move { slow_users.authenticate(Some(&basic("ann:x"))).await });
        while slow.comparing.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        request.abort();
        assert!(request.await.is_err_and(|ended| ended.is_cancelled()));
        assert_eq!(slow.comparing.available_permits(), 0, "it is compared to the end");
        assert_eq!(slow.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
    }

    #[test]
    fn invalid_hashes_are_rejected() {
        let mut users = Users::default();
        for hash in ["", "secret", "$1$abc", "$2y$10$short"] {
            assert!(matches!(users.add("a".into(), hash.into()), Err(Error::Hash(_))), "{hash}");
        }
        for cost in ["00", "03", "21", "31"] {
            let hash = format!("$2y${cost}$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi");
            assert!(matches!(users.add("a".into(), hash), Err(Error::Cost(_))), "{cost}");
        }
        assert!(users.is_empty());
        assert!(!format!("{:?}", self::users()).contains('$'), "hashes do not show");
    }
}

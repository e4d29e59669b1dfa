//! Passwords: bcrypt hashes, as etcd keeps them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::etcd::error::Error;

/// Passwords that wait to be hashed or compared; more are refused.
const WAITING: usize = 1024;

/// Hashes and compares passwords. Each takes some 50 ms of a processor by design, so it is not done on threads that serve
/// others, and not by more at once than there are processors.
#[derive(Debug)]
pub struct Passwords {
    processors: Semaphore,
    room: Semaphore,
    cost: u32,
}

impl Passwords {
    /// `cost` is bcrypt's, 4 to 31: each one more doubles the work.
    pub fn new(cost: u32) -> Passwords {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Passwords {
            processors: Semaphore::new(processors),
            room: Semaphore::new(WAITING),
            cost,
        }
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let room = self.room.try_acquire();
        let _room = room.map_err(|_| Error::TooManyRequests)?;
        let processor = self.processors.acquire().await;
        let _processor = processor.map_err(|_| Error::Stopped)?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Status::internal(error.to_string()))
    }

    /// # Errors
    /// The password is too long for bcrypt, or too many wait.
    pub async fn hash(&self, password: String) -> Result<Bytes, Status> {
        let cost = self.cost;
        let hash = move || bcrypt::non_truncating_hash(password, cost);
        match self.work(hash).await? {
            Ok(hash) => Ok(Bytes::from(hash)),
            Err(bcrypt::BcryptError::Truncation(_)) => {
                Err(Status::unknown("bcrypt: password length exceeds 72 bytes"))
            }
            Err(error) => Err(Status::unknown(error.to_string())),
        }
    }

    /// Whether `hash` is of the password. Nothing is of what is no hash.
    ///
    /// # Errors
    /// Too many wait.
    pub async fn matches(&self, password: String, hash: Bytes) -> Result<bool, Status> {
        let hash = String::from_utf8_lossy(&hash).into_owned();
        let verify = move || bcrypt::verify(password, &hash).unwrap_or(false);
        self.work(verify).await
    }
}

/// A hash that the client has made itself, in base64. As in etcd, it is not looked into.
///
/// # Errors
/// It is not base64; the error is the one that etcd gives for it.
pub fn given_hash(text: &str) -> Result<Bytes, Error> {
    let hash = STANDARD.decode(text).map_err(|_| Error::NoPasswordUser)?;
    Ok(Bytes::from(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_alone() {
        let passwords = Passwords::new(4);
        let hash = passwords.hash("secret".to_owned()).await.expect("a hash");
        let check = async |password: &str, hash: &Bytes, expect: bool| {
            let found = passwords.matches(password.to_owned(), hash.clone()).await;
            assert_eq!(found.expect("room"), expect, "{password}");
        };
        check("secret", &hash, true).await;
        check("Secret", &hash, false).await;
        check("", &hash, false).await;
        check("", &Bytes::new(), false).await;
        let long = passwords.hash("x".repeat(73)).await.expect_err("too long");
        assert_eq!(long.message(), "bcrypt: password length exceeds 72 bytes");
        let given = given_hash(&STANDARD.encode(&hash)).expect("base64");
        check("secret", &given, true).await;
        assert_eq!(given_hash("?"), Err(Error::NoPasswordUser));
    }

    #[tokio::test]
    async fn those_who_wait_are_bounded() {
        let passwords = Passwords::new(4);
        let _room = passwords.room.try_acquire_many(WAITING as u32);
        let refused = passwords.hash(String::new()).await.expect_err("no room");
        assert_eq!(refused.message(), "etcdserver: too many requests");
    }
}

//! Who may do what: users, organisations, memberships, and the credentials that stand for a user.
//!
//! Accounts come from the configuration and are the same at every start: ids that it does not give
//! are derived from the names (UUID version 5, which the CLI's own pattern for ids accepts). One
//! user and one organisation always exist, the seed, with fixed ids and credentials.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::platform::model::OwnerId;

/// The seed's identities. The UUIDs are version 4, as the CLI expects of an `--org`.
pub const SEED_USER_ID: &str = "user_5a5a5a5a-1b1b-4c4c-8d8d-9e9e9e9e9e9e";
pub const SEED_USER_EMAIL: &str = "dev@example.test";
pub const SEED_ORGANISATION_ID: &str = "orga_6b1f2c3d-0a1b-4c2d-8e3f-445566778899";
pub const SEED_ORGANISATION_NAME: &str = "acme";
pub const SEED_TOKEN: &str = "cke-seed-token";
pub const SEED_SECRET: &str = "cke-seed-secret";
/// Bearer token of the seed user.
pub const SEED_API_TOKEN: &str = "cke-seed-api-token";
/// Password of every account whose configuration gives none; asked for by `clever tokens create`.
pub const SEED_PASSWORD: &str = "cke";

/// Name space of the ids that are derived from names.
const NAMESPACE: Uuid = Uuid::from_u128(0x6e3b_1d5c_9a42_4f0e_8f1d_2c7b_6a50_93e4);

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum AccountError {
    #[error("{what} `{id}` is not {prefix}_ followed by a UUID of version 1 to 5")]
    Id {
        what: String,
        id: String,
        prefix: &'static str,
    },
    #[error("two accounts have the id `{0}`")]
    DuplicateId(String),
    #[error("two users have the e-mail address `{0}`")]
    DuplicateEmail(String),
    #[error("two users have the same {0}")]
    DuplicateCredential(&'static str),
    #[error("the {0} of `{1}` must be one or more of A-Z a-z 0-9 . _ -, and not `undefined`")]
    Credential(&'static str, String),
    #[error(
        "organisation `{organisation}` names the member `{email}`, whom no [[users]] entry has"
    )]
    UnknownMember { organisation: String, email: String },
}

/// More accounts, in the configuration file: `[[users]]` and `[[organisations]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountsConfig {
    pub users: Vec<UserConfig>,
    pub organisations: Vec<OrganisationConfig>,
    /// OAuth consumers whose HMAC signatures are accepted, besides the CLI's own.
    pub consumers: Vec<ConsumerConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UserConfig {
    pub name: String,
    pub email: String,
    /// `user_<uuid>`; derived from the e-mail address when absent.
    pub id: Option<String>,
    /// OAuth token and secret; derived from the e-mail address when absent.
    pub token: Option<String>,
    pub secret: Option<String>,
    /// Bearer token; none when absent.
    pub api_token: Option<String>,
    pub password: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OrganisationConfig {
    pub name: String,
    /// `orga_<uuid>`; derived from the name when absent.
    pub id: Option<String>,
    /// Users by e-mail address: `"ada@example.test"` is an administrator,
    /// `{ user = "ada@example.test", role = "DEVELOPER" }` says the role.
    #[serde(default)]
    pub members: Vec<MemberConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum MemberConfig {
    Administrator(String),
    Member { user: String, role: Role },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConsumerConfig {
    pub key: String,
    pub secret: String,
}

/// Role of a member in an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Role {
    Admin,
    Accounting,
    Developer,
    Manager,
}

#[derive(Clone, Debug)]
pub struct User {
    pub id: OwnerId,
    pub name: String,
    pub email: String,
    pub token: String,
    pub secret: String,
    pub api_token: Option<String>,
    pub password: String,
}

#[derive(Clone, Debug)]
pub struct Organisation {
    pub id: OwnerId,
    pub name: String,
    /// In the order of the configuration.
    pub members: Vec<(OwnerId, Role)>,
}

/// The seed's ids and credentials.
#[derive(Clone, Debug)]
pub struct Seed {
    pub user: OwnerId,
    pub organisation: OwnerId,
    pub token: String,
    pub secret: String,
    /// Bearer token.
    pub api_token: String,
}

/// Every account, immutable while the server runs.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The seed first.
    users: Vec<User>,
    organisations: Vec<Organisation>,
    consumers: BTreeMap<String, String>,
}

/// The CLI's own OAuth consumer; a public constant of its source, which the Go client uses as well.
const CLI_CONSUMER: (&str, &str) = (
    "T5nFjKeHH4AIlEveuGhB5S3xg8T19e",
    "MgVMqTr6fWlf2M0tkC2MXOnhfqBWDT",
);

impl Accounts {
    /// The seed, and what the configuration adds. The seed user is a member of the seed
    /// organisation only.
    pub fn new(config: AccountsConfig) -> Result<Accounts, AccountError> {
        let seed = User {
            id: owner_id("the seed user", SEED_USER_ID, "user")?,
            name: String::from("Dev"),
            email: String::from(SEED_USER_EMAIL),
            token: String::from(SEED_TOKEN),
            secret: String::from(SEED_SECRET),
            api_token: Some(String::from(SEED_API_TOKEN)),
            password: String::from(SEED_PASSWORD),
        };
        let seed_organisation = Organisation {
            id: owner_id("the seed organisation", SEED_ORGANISATION_ID, "orga")?,
            name: String::from(SEED_ORGANISATION_NAME),
            members: vec![(seed.id.clone(), Role::Admin)],
        };
        let mut users = vec![seed];
        for user in config.users {
            users.push(user.resolve()?);
        }
        let mut organisations = vec![seed_organisation];
        for organisation in config.organisations {
            organisations.push(organisation.resolve(&users)?);
        }
        check_unique(&users, &organisations)?;
        let mut consumers =
            BTreeMap::from([(CLI_CONSUMER.0.to_owned(), CLI_CONSUMER.1.to_owned())]);
        for consumer in config.consumers {
            consumers.insert(consumer.key, consumer.secret);
        }
        Ok(Accounts {
            users,
            organisations,
            consumers,
        })
    }

    pub fn users(&self) -> &[User] {
        &self.users
    }

    pub fn seed_user(&self) -> &User {
        &self.users[0]
    }

    pub fn seed_organisation(&self) -> &Organisation {
        &self.organisations[0]
    }

    /// What a client needs to be the seed user.
    pub fn seed(&self) -> Seed {
        let user = self.seed_user();
        Seed {
            user: user.id.clone(),
            organisation: self.seed_organisation().id.clone(),
            token: user.token.clone(),
            secret: user.secret.clone(),
            api_token: String::from(SEED_API_TOKEN),
        }
    }

    pub fn user(&self, id: &OwnerId) -> Option<&User> {
        self.users.iter().find(|user| user.id == *id)
    }

    pub fn user_by_email(&self, email: &str) -> Option<&User> {
        self.users
            .iter()
            .find(|user| user.email.eq_ignore_ascii_case(email))
    }

    pub fn user_by_token(&self, token: &str) -> Option<&User> {
        self.users.iter().find(|user| user.token == token)
    }

    pub fn user_by_api_token(&self, token: &str) -> Option<&User> {
        self.users
            .iter()
            .find(|user| user.api_token.as_deref() == Some(token))
    }

    /// Secret of an OAuth consumer.
    pub fn consumer_secret(&self, key: &str) -> Option<&str> {
        self.consumers.get(key).map(String::as_str)
    }

    pub fn organisations_of<'a>(
        &'a self,
        user: &'a User,
    ) -> impl Iterator<Item = (&'a Organisation, Role)> {
        self.organisations.iter().filter_map(|organisation| {
            let (_, role) = organisation.members.iter().find(|(id, _)| *id == user.id)?;
            Some((organisation, *role))
        })
    }

    /// Whether there is such a user or organisation.
    pub fn is_known(&self, id: &OwnerId) -> bool {
        self.user(id).is_some() || self.organisations.iter().any(|it| it.id == *id)
    }

    /// Of an organisation, or of the user whose personal space it is.
    pub fn name_of(&self, id: &OwnerId) -> Option<&str> {
        let mut organisations = self.organisations.iter();
        let organisation = organisations.find(|organisation| organisation.id == *id);
        match organisation {
            Some(organisation) => Some(&organisation.name),
            None => self.user(id).map(|user| user.name.as_str()),
        }
    }

    /// Whether `user` may act for `owner`: themselves, or an organisation that they belong to.
    pub fn may_act_for(&self, user: &User, owner: &OwnerId) -> bool {
        user.id == *owner || self.organisations_of(user).any(|(it, _)| it.id == *owner)
    }
}

impl UserConfig {
    fn resolve(self) -> Result<User, AccountError> {
        let derived = |kind: &str| {
            Uuid::new_v5(&NAMESPACE, format!("{kind}:{}", self.email).as_bytes())
                .simple()
                .to_string()
        };
        let id = self
            .id
            .clone()
            .unwrap_or_else(|| format!("user_{}", name_id("user", &self.email)));
        let credential = |what, given: &Option<String>, kind| match given {
            None => Ok(derived(kind)),
            Some(text) if is_credential(text) => Ok(text.clone()),
            Some(_) => Err(AccountError::Credential(what, self.email.clone())),
        };
        if let Some(api_token) = &self.api_token
            && !is_credential(api_token)
        {
            return Err(AccountError::Credential("api-token", self.email.clone()));
        }
        Ok(User {
            id: owner_id(&format!("the id of user {}", self.email), &id, "user")?,
            name: self.name.clone(),
            email: self.email.clone(),
            token: credential("token", &self.token, "token")?,
            secret: credential("secret", &self.secret, "secret")?,
            api_token: self.api_token.clone(),
            password: self
                .password
                .clone()
                .unwrap_or_else(|| String::from(SEED_PASSWORD)),
        })
    }
}

impl OrganisationConfig {
    fn resolve(self, users: &[User]) -> Result<Organisation, AccountError> {
        let id = self
            .id
            .clone()
            .unwrap_or_else(|| format!("orga_{}", name_id("orga", &self.name)));
        let mut members = Vec::new();
        for member in &self.members {
            let (email, role) = match member {
                MemberConfig::Administrator(email) => (email, Role::Admin),
                MemberConfig::Member { user, role } => (user, *role),
            };
            let user = users
                .iter()
                .find(|user| user.email.eq_ignore_ascii_case(email))
                .ok_or_else(|| AccountError::UnknownMember {
                    organisation: self.name.clone(),
                    email: email.clone(),
                })?;
            members.push((user.id.clone(), role));
        }
        Ok(Organisation {
            id: owner_id(
                &format!("the id of organisation {}", self.name),
                &id,
                "orga",
            )?,
            name: self.name,
            members,
        })
    }
}

fn name_id(kind: &str, name: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{kind}:{name}").as_bytes())
}

fn owner_id(what: &str, id: &str, prefix: &'static str) -> Result<OwnerId, AccountError> {
    let invalid = || AccountError::Id {
        what: what.to_owned(),
        id: id.to_owned(),
        prefix,
    };
    let uuid = id
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .and_then(|uuid| Uuid::try_parse(uuid).ok())
        .ok_or_else(invalid)?;
    // The CLI takes any other version for a name.
    if !(1..=5).contains(&uuid.get_version_num()) || uuid.get_variant() != uuid::Variant::RFC4122 {
        return Err(invalid());
    }
    id.parse().map_err(|_| invalid())
}

/// The CLI writes credentials into its header without any encoding, and sends `undefined` when it
/// has none.
pub fn is_credential(text: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text != "undefined" && text.bytes().all(unreserved)
}

fn check_unique(users: &[User], organisations: &[Organisation]) -> Result<(), AccountError> {
    let mut ids: Vec<String> = users
        .iter()
        .map(|user| user.id.to_string())
        .chain(organisations.iter().map(|it| it.id.to_string()))
        .collect();
    if let Some(id) = duplicate(&mut ids) {
        return Err(AccountError::DuplicateId(id));
    }
    let mut emails: Vec<String> = users.iter().map(|it| it.email.to_lowercase()).collect();
    if let Some(email) = duplicate(&mut emails) {
        return Err(AccountError::DuplicateEmail(email));
    }
    let mut tokens: Vec<String> = users.iter().map(|it| it.token.clone()).collect();
    if duplicate(&mut tokens).is_some() {
        return Err(AccountError::DuplicateCredential("token"));
    }
    let mut api_tokens: Vec<String> = users.iter().filter_map(|it| it.api_token.clone()).collect();
    if duplicate(&mut api_tokens).is_some() {
        return Err(AccountError::DuplicateCredential("api-token"));
    }
    Ok(())
}

fn duplicate(texts: &mut [String]) -> Option<String> {
    texts.sort();
    texts
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(toml: &str) -> Result<Accounts, AccountError> {
        Accounts::new(toml::from_str(toml).expect("the file is valid"))
    }

    #[test]
    fn configured_accounts_are_the_same_at_every_start() {
        let file = "[[users]]\nname = 'Ada'\nemail = 'ada@example.test'\n\
                    [[organisations]]\nname = 'engines'\nmembers = ['ADA@example.test', { user = 'dev@example.test', role = 'DEVELOPER' }]\n";
        let (one, two) = (accounts(file).unwrap(), accounts(file).unwrap());
        let ada = one.user_by_email("ada@example.test").unwrap();
        assert_eq!(ada.id, two.users()[1].id);
        assert_eq!(ada.token, two.users()[1].token);
        let roles: Vec<_> = one
            .organisations_of(one.seed_user())
            .map(|(it, role)| (it.name.as_str(), role))
            .collect();
        assert_eq!(roles, [("acme", Role::Admin), ("engines", Role::Developer)]);
        assert!(one.may_act_for(ada, &ada.id));
        assert!(!one.may_act_for(ada, &one.seed_organisation().id));
        assert!(!one.may_act_for(ada, &one.seed_user().id));
    }

    #[test]
    fn bad_accounts_are_refused() {
        let check = |toml: &str, expect: &str| {
            let error = accounts(toml).map(drop).expect_err(toml).to_string();
            assert!(error.contains(expect), "{toml}: {error}");
        };
        check(
            "[[users]]\nname = 'A'\nemail = 'a@b'\nid = 'user_1'",
            "is not user_ followed by a UUID",
        );
        check(
            "[[users]]\nname = 'A'\nemail = 'a@b'\nid = 'orga_6b1f2c3d-0a1b-4c2d-8e3f-445566778811'",
            "is not user_ followed by a UUID",
        );
        check(
            "[[organisations]]\nname = 'o'\nid = 'orga_01890a5d-ac96-774b-bcce-b302099a8057'",
            "UUID of version 1 to 5",
        );
        check(
            "[[users]]\nname = 'A'\nemail = 'a@b'\ntoken = 'undefined'",
            "the token of `a@b`",
        );
        check(
            "[[users]]\nname = 'A'\nemail = 'a@b'\nsecret = 'a%26b'",
            "the secret of `a@b`",
        );
        check(
            "[[users]]\nname = 'A'\nemail = 'DEV@example.test'",
            "two users have the e-mail address",
        );
        check(
            "[[users]]\nname = 'A'\nemail = 'a@b'\ntoken = 'cke-seed-token'",
            "two users have the same token",
        );
        check(
            "[[organisations]]\nname = 'o'\nmembers = ['nobody@b']",
            "names the member `nobody@b`",
        );
        check(
            "[[organisations]]\nname = 'o'\nid = 'orga_6b1f2c3d-0a1b-4c2d-8e3f-445566778899'",
            "two accounts have the id",
        );
    }
}

//! Objects of any kind over a cluster's etcd keyspace: create, get, list, update, delete.
//!
//! An object is kept as JSON without its resource version, which is its key's mod revision; a write
//! compares it. So conflicts, and the order of resource versions, are kube-apiserver's.

mod absent;
pub mod apply;
mod defaults;
mod deletion;
pub mod draws;
mod field_set;
pub mod list;
pub mod patch;
pub mod resource;
pub mod selector;
mod service;
mod service_account;
mod storage;
pub mod table;
pub mod validation;
pub mod watch;

use base64::Engine as _;
use bytes::Bytes;
use etcd_proto::etcdserverpb::response_op::Response;
use etcd_proto::etcdserverpb::{RangeRequest, TxnRequest, TxnResponse};
use etcd_proto::mvccpb::KeyValue;
use serde_json::{Value, json};

use self::absent::Absent;
use self::deletion::is_finished;
pub use self::deletion::{DeleteOptions, Deleted, FOREGROUND, ORPHAN, Preconditions, Propagation};
use self::draws::Draws;
use self::resource::{Kind, Resource};
use super::status::ApiError;
use crate::clock::{Clock, Timestamp};
use crate::etcd::client::{self, Client};

/// Tries of a write that did not say which version it means to replace.
const ATTEMPTS: usize = 32;

/// Where an object is: of a kind, in a namespace unless the kind has none.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub resource: &'static Resource,
    pub namespace: Option<&'a str>,
}

impl Place<'_> {
    fn key(&self, name: &str) -> String {
        self.resource.key(self.namespace, name)
    }
}

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status, where that is a subresource.
    Object,
    Status,
}

impl Part {
    /// As managers of fields name it.
    fn subresource(self) -> &'static str {
        match self {
            Part::Object => "",
            Part::Status => "status",
        }
    }
}

/// Who writes, and whether the write is only tried.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions<'a> {
    /// Name of the field manager.
    pub manager: &'a str,
    /// That the write came by, where it is about the object all the same, such as `scale`; mostly empty.
    pub subresource: &'a str,
    pub dry_run: bool,
}

impl WriteOptions<'_> {
    pub fn by(manager: &str) -> WriteOptions<'_> {
        WriteOptions {
            manager,
            subresource: "",
            dry_run: false,
        }
    }
}

/// Told of every write of this process, once it is done: the key, and the object, or none if it is gone.
/// Must not wait.
pub type OnWrite = Box<dyn Fn(&str, Option<&Value>) + Send + Sync>;

/// The objects of one cluster.
pub struct Registry {
    client: Client,
    clock: Clock,
    draws: Draws,
    on_write: OnWrite,
    /// `None` where others write, too.
    absent: Option<Absent>,
}

impl Registry {
    /// `alone`: nobody else writes to the keyspace.
    pub fn new(
        client: Client,
        clock: Clock,
        draws: Draws,
        on_write: OnWrite,
        alone: bool,
    ) -> Registry {
        Registry {
            client,
            clock,
            draws,
            on_write,
            absent: alone.then(Absent::default),
        }
    }

    /// Whether there is surely no object of the kind. Asks etcd once at most.
    pub async fn has_none(&self, resource: &Resource) -> Result<bool, ApiError> {
        let Some(absent) = &self.absent else {
            return Ok(false);
        };
        let prefix = resource.prefix(None);
        if let Some(known) = absent.is_absent(&prefix) {
            return Ok(known);
        }
        let (key, range_end) = client::prefix_range(Bytes::from(prefix.clone()));
        let counted = self
            .client
            .range(RangeRequest {
                key,
                range_end,
                count_only: true,
                ..RangeRequest::default()
            })
            .await?;
        absent.learn(&prefix, counted.count == 0);
        Ok(counted.count == 0)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub async fn get(&self, place: Place<'_>, name: &str) -> Result<Value, ApiError> {
        match self.client.get(place.key(name)).await?.value {
            Some(kv) => decode(&kv),
            None => Err(ApiError::not_found(place.resource, name)),
        }
    }

    /// Keeps a new object. `dry_run` does everything but that.
    pub async fn create(
        &self,
        place: Place<'_>,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        /// As kube-apiserver tries to find a generated name that is free.
        const NAMES: usize = 8;
        self.check_type(place, &mut object)?;
        remove(&mut object["metadata"], "managedFields");
        let mut refused = None;
        for _ in 0..NAMES {
            let Some(name) = self.generated_name(place, &object) else {
                break;
            };
            let mut named = object.clone();
            named["metadata"]["name"] = Value::from(name);
            match self.create_named(place, named, dry_run).await {
                Err(error) if error.reason == "AlreadyExists" => refused = Some(error),
                outcome => return outcome,
            }
        }
        match refused {
            Some(error) => Err(error),
            None => self.create_named(place, object, dry_run).await,
        }
    }

    async fn create_named(
        &self,
        place: Place<'_>,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        if let Some(namespace) = place.namespace {
            self.check_namespace(namespace).await?;
        }
        let name = self.prepare(place, &mut object).await?;
        match self
            .allocate_and_write(place, &name, 0, &mut object, dry_run)
            .await?
        {
            _ if dry_run => Ok(object),
            Some(revision) => {
                let created = with_version(object, revision);
                if place.resource.kind == "Namespace" {
                    self.populate_namespace(&name).await?;
                }
                Ok(created)
            }
            None => Err(ApiError::already_exists(place.resource, &name)),
        }
    }

    /// Makes of what is asked for what is to be kept. Returns its name.
    async fn prepare(&self, place: Place<'_>, object: &mut Value) -> Result<String, ApiError> {
        let name = name_of(object);
        if object["metadata"]["resourceVersion"]
            .as_str()
            .is_some_and(|version| !version.is_empty())
        {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        // A status comes later, by its subresource; only kubelets register with one.
        if place.resource.status && place.resource.kind != "Node" {
            remove(object, "status");
        }
        defaults::fill(place.resource, object);
        if place.resource.kind == "PersistentVolumeClaim" {
            storage::choose_class(object, &self.storage_classes().await?);
        }
        if place.resource.kind == "Pod" {
            let account = self.service_account(place, object).await?;
            service_account::admit(object, account.as_ref());
        }
        storage::protect(place.resource.kind, object);
        let causes = validation::validate(place.resource, object, None);
        if !causes.is_empty() {
            return Err(ApiError::invalid(place.resource, &name, &causes));
        }
        let uid = self.uid(&place.key(&name));
        let metadata = &mut object["metadata"];
        metadata["uid"] = Value::from(uid);
        metadata["creationTimestamp"] = Value::from(seconds(self.clock.now()));
        if place.resource.generation {
            metadata["generation"] = Value::from(1);
        }
        remove(metadata, "resourceVersion");
        remove(metadata, "selfLink");
        remove(metadata, "deletionTimestamp");
        Ok(name)
    }

    /// Keeps new objects that are in nobody's way, all at once: namespaces and what they begin with. Says whether
    /// it did; none is kept if one is there already.
    pub async fn create_all(&self, objects: Vec<(Place<'_>, Value)>) -> Result<bool, ApiError> {
        let (mut compare, mut success, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (place, mut object) in objects {
            self.check_type(place, &mut object)?;
            let name = self.prepare(place, &mut object).await?;
            let key = place.key(&name);
            self.announce(&key);
            let value = serde_json::to_vec(&object).map_err(ApiError::internal)?;
            compare.push(client::mod_revision_is(key.clone(), 0));
            success.push(client::put(key.clone(), value));
            kept.push((key, object));
        }
        let response = self
            .client
            .txn(TxnRequest {
                compare,
                success,
                failure: vec![],
            })
            .await?;
        if response.succeeded {
            for (key, object) in &kept {
                (self.on_write)(key, Some(object));
            }
        }
        Ok(response.succeeded)
    }

    /// Replaces an object, or its status.
    pub async fn update(
        &self,
        place: Place<'_>,
        name: &str,
        part: Part,
        mut object: Value,
        options: WriteOptions<'_>,
    ) -> Result<Value, ApiError> {
        self.check_type(place, &mut object)?;
        let given = name_of(&object);
        if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        self.modify(place, name, part, options, |_| Ok(object.clone()))
            .await
    }

    /// Replaces an object, or its status, by what `change` makes of it. If the result carries a
    /// resource version, that must be the present one: an update's is the one that the caller read,
    /// a patch's is the one that it was applied to, so that a patch is tried until it succeeds.
    pub async fn modify(
        &self,
        place: Place<'_>,
        name: &str,
        part: Part,
        options: WriteOptions<'_>,
        change: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Value, ApiError> {
        let key = place.key(name);
        let (time, api_version) = (seconds(self.clock.now()), place.resource.api_version());
        let write = apply::Write {
            manager: options.manager,
            api_version: &api_version,
            subresource: match options.subresource {
                "" => part.subresource(),
                named => named,
            },
            time: &time,
        };
        for _ in 0..ATTEMPTS {
            let Some(kv) = self.client.get(key.clone()).await?.value else {
                return Err(ApiError::not_found(place.resource, name));
            };
            let current = decode(&kv)?;
            let changed = change(&current)?;
            let asked = changed["metadata"]["resourceVersion"]
                .as_str()
                .unwrap_or("");
            let pinned = !asked.is_empty() && asked != "0";
            if pinned && asked != kv.mod_revision.to_string() {
                return Err(ApiError::modified(place.resource, name));
            }
            let mut next = self.next(place, &current, changed, part)?;
            if next == current {
                return Ok(next);
            }
            if let Some(managers) = apply::updated(&current, &next, write) {
                next["metadata"]["managedFields"] = managers;
            }
            if let Some(stored) = self
                .keep(place, name, &current, next, options.dry_run)
                .await?
            {
                return Ok(stored);
            }
        }
        Err(ApiError::modified(place.resource, name))
    }

    /// Makes the object what an applied configuration says, or creates it. Says whether it was created.
    /// `force` takes fields from other managers.
    pub async fn apply(
        &self,
        place: Place<'_>,
        name: &str,
        part: Part,
        mut config: Value,
        force: bool,
        options: WriteOptions<'_>,
    ) -> Result<(bool, Value), ApiError> {
        self.check_type(place, &mut config)?;
        let given = name_of(&config);
        if !given.is_empty() && given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        config["metadata"]["name"] = Value::from(name);
        if !config["metadata"]["managedFields"].is_null() {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let (time, api_version) = (seconds(self.clock.now()), place.resource.api_version());
        let write = apply::Write {
            manager: options.manager,
            api_version: &api_version,
            subresource: part.subresource(),
            time: &time,
        };
        let applied = |live: &Value| {
            apply::apply(live, &config, write, force)
                .map_err(|conflicts| ApiError::apply_conflict(&conflicts))
        };
        let asked = config["metadata"]["resourceVersion"].as_str().unwrap_or("");
        for _ in 0..ATTEMPTS {
            let Some(kv) = self.client.get(place.key(name)).await?.value else {
                if part == Part::Status || !asked.is_empty() {
                    return Err(ApiError::not_found(place.resource, name));
                }
                let object = applied(&Value::Null)?;
                match self.create_named(place, object, options.dry_run).await {
                    Err(error) if error.reason == "AlreadyExists" => continue,
                    outcome => return outcome.map(|created| (true, created)),
                }
            };
            let current = decode(&kv)?;
            if !asked.is_empty() && asked != kv.mod_revision.to_string() {
                return Err(ApiError::modified(place.resource, name));
            }
            let changed = applied(&current)?;
            let managers = changed["metadata"]["managedFields"].clone();
            let mut next = self.next(place, &current, changed, part)?;
            next["metadata"]["managedFields"] = managers;
            if next == current {
                return Ok((false, next));
            }
            if let Some(stored) = self
                .keep(place, name, &current, next, options.dry_run)
                .await?
            {
                return Ok((false, stored));
            }
        }
        Err(ApiError::modified(place.resource, name))
    }

    /// Writes what is to come after `current`; none if that is no longer what is there.
    async fn keep(
        &self,
        place: Place<'_>,
        name: &str,
        current: &Value,
        next: Value,
        dry_run: bool,
    ) -> Result<Option<Value>, ApiError> {
        let version = current["metadata"]["resourceVersion"].as_str();
        let expected = version.and_then(|text| text.parse().ok()).unwrap_or(0);
        if place.resource.kind == "PersistentVolumeClaim" && storage::grows(current, &next) {
            storage::may_grow(place, &next, &self.storage_classes().await?)?;
        }
        let mut stored = without_version(next);
        let written = if is_finished(&stored) && !dry_run {
            self.remove(&place.key(name), expected).await?
        } else {
            self.allocate_and_write(place, name, expected, &mut stored, dry_run)
                .await?
        };
        if dry_run {
            return Ok(Some(with_version(stored, expected)));
        }
        Ok(written.map(|revision| with_version(stored, revision)))
    }

    /// Writes what `change` makes of the object, spec and status together. For subresources that are
    /// about both.
    pub async fn bind(
        &self,
        place: Place<'_>,
        name: &str,
        dry_run: bool,
        change: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<(), ApiError> {
        let key = place.key(name);
        for _ in 0..ATTEMPTS {
            let Some(kv) = self.client.get(key.clone()).await?.value else {
                return Err(ApiError::not_found(place.resource, name));
            };
            let next = without_version(change(&decode(&kv)?)?);
            if dry_run || self.write(&key, kv.mod_revision, &next).await?.is_some() {
                return Ok(());
            }
        }
        Err(ApiError::modified(place.resource, name))
    }

    /// `changed`, with what a write may not change as it was.
    fn next(
        &self,
        place: Place<'_>,
        current: &Value,
        changed: Value,
        part: Part,
    ) -> Result<Value, ApiError> {
        let resource = place.resource;
        let name = name_of(current);
        let uid = &changed["metadata"]["uid"];
        if uid.is_string() && uid != &current["metadata"]["uid"] {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                uid.as_str().unwrap_or(""),
                current["metadata"]["uid"].as_str().unwrap_or("")
            );
            return Err(ApiError::conflict(resource, &name, &why));
        }
        let mut next = match part {
            Part::Status => {
                let mut next = current.clone();
                next["status"] = changed["status"].clone();
                next
            }
            Part::Object => {
                let mut next = changed;
                if resource.status {
                    match current.get("status") {
                        Some(status) => next["status"] = status.clone(),
                        None => remove(&mut next, "status"),
                    }
                }
                next
            }
        };
        for field in [
            "uid",
            "creationTimestamp",
            "generation",
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "name",
            "namespace",
            "managedFields",
        ] {
            match current["metadata"].get(field) {
                Some(value) => next["metadata"][field] = value.clone(),
                None => remove(&mut next["metadata"], field),
            }
        }
        next["kind"] = Value::from(resource.kind);
        next["apiVersion"] = Value::from(resource.api_version());
        if part == Part::Object {
            keep_allocated(resource, current, &mut next);
            defaults::fill(resource, &mut next);
            let causes = validation::validate(resource, &next, Some(current));
            if !causes.is_empty() {
                return Err(ApiError::invalid(resource, &name, &causes));
            }
            if resource.generation && next["spec"] != current["spec"] {
                let generation = current["metadata"]["generation"].as_i64().unwrap_or(0);
                next["metadata"]["generation"] = Value::from(generation + 1);
            }
        }
        Ok(next)
    }

    /// What every namespace starts with. Repeating it changes nothing.
    pub async fn populate_namespace(&self, name: &str) -> Result<(), ApiError> {
        let (place, account) = first_account(name);
        match Box::pin(self.create(place, account, false)).await {
            Err(error) if error.reason != "AlreadyExists" => Err(error),
            _ => Ok(()),
        }
    }

    async fn check_namespace(&self, namespace: &str) -> Result<(), ApiError> {
        let resource = Resource::of_kind(Kind::Namespace);
        let place = Place {
            resource,
            namespace: None,
        };
        let found = self.get(place, namespace).await?;
        if found["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        Err(ApiError::forbidden(format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        )))
    }

    /// Kind and namespace in the body must be those of the URL; absent ones are filled in.
    fn check_type(&self, place: Place<'_>, object: &mut Value) -> Result<(), ApiError> {
        let resource = place.resource;
        if !object.is_object() {
            return Err(ApiError::bad_request("the body is not an object"));
        }
        if object["metadata"].is_null() {
            object["metadata"] = json!({});
        }
        if !object["metadata"].is_object() {
            return Err(ApiError::bad_request("metadata is not an object"));
        }
        for (field, expected) in [
            ("kind", resource.kind.to_owned()),
            ("apiVersion", resource.api_version()),
        ] {
            match object[field].as_str() {
                None | Some("") => object[field] = Value::from(expected),
                Some(given) if given == expected => {}
                Some(given) => {
                    return Err(ApiError::bad_request(format!(
                        "the {field} in the data ({given}) does not match the expected one ({expected})"
                    )));
                }
            }
        }
        match (place.namespace, object["metadata"]["namespace"].as_str()) {
            (Some(namespace), None | Some("")) => {
                object["metadata"]["namespace"] = Value::from(namespace);
            }
            (Some(namespace), Some(given)) if given != namespace => {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            (None, _) => remove(&mut object["metadata"], "namespace"),
            (Some(_), Some(_)) => {}
        }
        Ok(())
    }

    /// The one that a pod runs as, if it is there.
    async fn service_account(
        &self,
        place: Place<'_>,
        pod: &Value,
    ) -> Result<Option<Value>, ApiError> {
        let at = Place {
            resource: Resource::of_kind(Kind::ServiceAccount),
            namespace: place.namespace,
        };
        let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or("");
        let found = self.client.get(at.key(name)).await?.value;
        found.as_ref().map(decode).transpose()
    }

    async fn storage_classes(&self) -> Result<Vec<Value>, ApiError> {
        let prefix = Resource::of_kind(Kind::StorageClass).prefix(None);
        let listed = self.client.list(prefix).await?.value;
        listed.iter().map(decode).collect()
    }

    /// A name that begins as the object asks; none if it has one, or does not ask.
    fn generated_name(&self, place: Place<'_>, object: &Value) -> Option<String> {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let metadata = &object["metadata"];
        if !metadata["name"].as_str().unwrap_or("").is_empty() {
            return None;
        }
        let prefix = metadata["generateName"].as_str()?;
        let draw = self.draws.draw(&place.key(prefix), self.clock.now());
        let suffix: String = draw
            .iter()
            .take(5)
            .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
            .collect();
        let kept: String = prefix.chars().take(58).collect();
        Some(format!("{kept}{suffix}"))
    }

    fn uid(&self, key: &str) -> String {
        let draw = self.draws.draw(key, self.clock.now());
        let [bytes, _] = draw.as_chunks::<16>().0 else {
            return String::new();
        };
        uuid::Builder::from_random_bytes(*bytes)
            .into_uuid()
            .to_string()
    }

    /// Gives the object what only one may have, then writes it as [`Registry::write`] does, unless the run
    /// is dry.
    async fn allocate_and_write(
        &self,
        place: Place<'_>,
        name: &str,
        expected: i64,
        object: &mut Value,
        dry_run: bool,
    ) -> Result<Option<i64>, ApiError> {
        self.announce(&place.key(name));
        if place.resource.kind != "Service" || !service::wants(object) {
            if dry_run {
                return Ok(None);
            }
            return self.write(&place.key(name), expected, object).await;
        }
        let key = place.key(name);
        for _ in 0..ATTEMPTS {
            let allocation = self.client.get(service::ALLOCATION).await?.value;
            let allocation = allocation.map_or(0, |kv| kv.mod_revision);
            let mut others = Vec::new();
            for kv in self.client.list(place.resource.prefix(None)).await?.value {
                if kv.key != key.as_bytes() {
                    others.push(decode(&kv)?);
                }
            }
            let mut given = object.clone();
            service::allocate(&mut given, &others)
                .map_err(|causes| ApiError::invalid(place.resource, name, &causes))?;
            if dry_run {
                *object = given;
                return Ok(None);
            }
            let value = serde_json::to_vec(&given).map_err(ApiError::internal)?;
            let response = self
                .client
                .txn(TxnRequest {
                    compare: vec![
                        client::mod_revision_is(key.clone(), expected),
                        client::mod_revision_is(service::ALLOCATION, allocation),
                    ],
                    success: vec![
                        client::put(key.clone(), value),
                        client::put(service::ALLOCATION, Vec::new()),
                    ],
                    failure: vec![],
                })
                .await?;
            if let Some(revision) = self.written(&key, Some(&given), &response) {
                *object = given;
                return Ok(Some(revision));
            }
            let now = self.client.get(key.clone()).await?.value;
            if now.map_or(0, |kv| kv.mod_revision) != expected {
                return Ok(None);
            }
            // Another Service was given something meanwhile.
        }
        Err(ApiError::modified(place.resource, name))
    }

    /// Sets the key if its mod revision is still `expected`; the new revision, or none if it is not.
    async fn write(
        &self,
        key: &str,
        expected: i64,
        object: &Value,
    ) -> Result<Option<i64>, ApiError> {
        self.announce(key);
        let value = serde_json::to_vec(object).map_err(ApiError::internal)?;
        let response = self
            .client
            .txn(TxnRequest {
                compare: vec![client::mod_revision_is(key.to_owned(), expected)],
                success: vec![client::put(key.to_owned(), value)],
                failure: vec![],
            })
            .await?;
        Ok(self.written(key, Some(object), &response))
    }

    async fn remove(&self, key: &str, expected: i64) -> Result<Option<i64>, ApiError> {
        let response = self
            .client
            .txn(TxnRequest {
                compare: vec![client::mod_revision_is(key.to_owned(), expected)],
                success: vec![client::delete(key.to_owned())],
                failure: vec![],
            })
            .await?;
        Ok(self.written(key, None, &response))
    }

    /// The key is about to be written.
    fn announce(&self, key: &str) {
        if let Some(absent) = &self.absent {
            absent.write(key);
        }
    }

    fn written(&self, key: &str, object: Option<&Value>, response: &TxnResponse) -> Option<i64> {
        let revision = revision_if_succeeded(response);
        if revision.is_some() {
            (self.on_write)(key, object);
        }
        revision
    }
}

/// What a namespace starts with.
pub fn first_account(namespace: &str) -> (Place<'_>, Value) {
    let place = Place {
        resource: Resource::of_kind(Kind::ServiceAccount),
        namespace: Some(namespace),
    };
    (place, json!({"metadata": {"name": "default"}}))
}

fn revision_if_succeeded(response: &TxnResponse) -> Option<i64> {
    let of_delete = response.responses.iter().find_map(|op| match &op.response {
        Some(Response::ResponseDeleteRange(deleted)) => deleted.header.as_ref(),
        _ => None,
    });
    let header = response.header.as_ref().or(of_delete)?;
    response.succeeded.then_some(header.revision)
}

/// What a write may leave out and still keep: addresses of a service, the node of a pod.
fn keep_allocated(resource: &Resource, current: &Value, next: &mut Value) {
    if resource.kind == "Pod" && next["spec"]["nodeName"].is_null() {
        let node = &current["spec"]["nodeName"];
        if !node.is_null() {
            next["spec"]["nodeName"] = node.clone();
        }
    }
    if resource.kind == "Service" {
        service::keep(current, next);
    }
}

pub fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or("").to_owned()
}

/// The object under a key, with its resource version.
pub fn decode(kv: &KeyValue) -> Result<Value, ApiError> {
    let object: Value = serde_json::from_slice(&kv.value).map_err(|error| {
        ApiError::internal(format!("{}: {error}", String::from_utf8_lossy(&kv.key)))
    })?;
    Ok(with_version(object, kv.mod_revision))
}

pub fn with_version(mut object: Value, revision: i64) -> Value {
    object["metadata"]["resourceVersion"] = Value::from(revision.to_string());
    object
}

fn without_version(mut object: Value) -> Value {
    remove(&mut object["metadata"], "resourceVersion");
    object
}

fn remove(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
}

/// RFC 3339 to the second, as `metav1.Time` is written.
pub fn seconds(now: Timestamp) -> String {
    let text = now.to_rfc3339();
    match text.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => text,
    }
}

/// The position in a list that a client goes on from.
#[derive(serde::Serialize, serde::Deserialize)]
struct Continue {
    revision: i64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    }

    fn decode(token: &str) -> Result<Continue, ApiError> {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }
}

//! One request to one cluster: who may, what is asked, and the answer.

mod authorization;
mod media;
mod subresources;

use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use self::authorization::{authorize, authorize_information};
use self::media::{
    accept, applied_configuration, bytes_of, content_type, json_response, object_of, parse,
    set_content_type,
};
use super::body::{Body, Incoming, full, stream};
use super::cluster::Cluster;
use super::pki::Identity;
use super::registry::list::ListOptions;
use super::registry::patch::{self, PatchType};
use super::registry::resource::Resource;
use super::registry::selector::Selector;
use super::registry::table::{IncludeObject, table};
use super::registry::watch::WatchOptions;
use super::registry::{
    DeleteOptions, Deleted, Part, Place, Preconditions, Propagation, WriteOptions, name_of,
};
use super::request::{Query, Target, verb};
use super::status::ApiError;
use super::{discovery, openapi};

/// Who asks; none without a certificate of this cluster's.
pub type Caller = Option<Identity>;

/// Answers a request whose path, behind the cluster's id, is `path`.
pub fn handle<'a>(
    cluster: &'a Cluster,
    caller: Caller,
    path: &'a str,
    request: Request<Incoming>,
) -> BoxFuture<'a, Response<Body>> {
    Box::pin(async move {
        match answer(cluster, caller, path, request).await {
            Ok(response) => response,
            Err(error) => error.to_response(),
        }
    })
}

async fn answer(
    cluster: &Cluster,
    caller: Caller,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let target = Target::parse(path)?;
    let objects = match target {
        Target::Information(path) => {
            authorize_information(&caller, &path)?;
            return information(cluster, &path, request.method(), request.headers());
        }
        Target::Objects(objects) => objects,
    };
    let verb = verb(request.method(), &objects, &query);
    authorize(&caller, verb, &objects)?;
    let exchange = Exchange {
        cluster,
        place: Place {
            resource: objects.resource,
            namespace: objects.namespace.as_deref(),
        },
        query: &query,
        render: Render::of(request.headers(), &query),
    };
    let name = objects.name.as_deref();
    match (objects.subresource.as_deref(), name) {
        (Some("scale"), Some(name)) if objects.resource.scale => {
            exchange.scale(name, verb, request).await
        }
        (Some("status"), Some(name)) if objects.resource.status => {
            exchange.object(name, Part::Status, verb, request).await
        }
        (Some("eviction"), Some(name)) if objects.resource.kind == "Pod" && verb == "create" => {
            exchange.evict(name, request).await
        }
        (Some("binding"), Some(name)) if objects.resource.kind == "Pod" && verb == "create" => {
            exchange.bind(name, request).await
        }
        (Some("finalize"), Some(name)) if objects.resource.kind == "Namespace" => {
            exchange.object(name, Part::Object, verb, request).await
        }
        (Some(_), _) => Err(ApiError::no_such_path()),
        (None, Some(name)) => exchange.object(name, Part::Object, verb, request).await,
        (None, None) => exchange.collection(verb, request).await,
    }
}

fn information(
    cluster: &Cluster,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    if method != Method::GET && method != Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let accept = accept(headers);
    let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2");
    let document = match parts.as_slice() {
        ["version"] => discovery::version(&cluster.record.version),
        ["healthz" | "livez" | "readyz", ..] => {
            let mut response = Response::new(full("ok"));
            set_content_type(&mut response, "text/plain; charset=utf-8");
            return Ok(response);
        }
        ["api" | "apis"] if aggregated => {
            let mut response =
                json_response(StatusCode::OK, &discovery::aggregated(parts == ["api"]));
            set_content_type(
                &mut response,
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            );
            return Ok(response);
        }
        ["api"] => discovery::core_versions(&cluster.server_address),
        ["apis"] => discovery::group_list(),
        ["apis", group] => discovery::group(group).ok_or_else(ApiError::no_such_path)?,
        ["api", version] => {
            discovery::resource_list("", version).ok_or_else(ApiError::no_such_path)?
        }
        ["apis", group, version] => {
            discovery::resource_list(group, version).ok_or_else(ApiError::no_such_path)?
        }
        ["openapi", "v3"] => openapi::index(&cluster.root()),
        ["openapi", "v3", rest @ ..] => {
            let document = openapi::get(&rest.join("/")).ok_or_else(ApiError::no_such_path)?;
            return Ok(json_response(StatusCode::OK, document));
        }
        [] => {
            json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]})
        }
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(json_response(StatusCode::OK, &document))
}

/// Objects as they are, or as a table.
#[derive(Clone, Copy)]
enum Render {
    Objects,
    Table(IncludeObject),
}

impl Render {
    fn of(headers: &HeaderMap, query: &Query) -> Render {
        let accept = accept(headers);
        let wants_table = accept
            .split(',')
            .next()
            .is_some_and(|first| first.contains("as=Table") && first.contains("g=meta.k8s.io"));
        if !wants_table {
            return Render::Objects;
        }
        Render::Table(match query.get("includeObject") {
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            _ => IncludeObject::Metadata,
        })
    }
}

struct Exchange<'a> {
    cluster: &'a Cluster,
    place: Place<'a>,
    query: &'a Query,
    render: Render,
}

impl Exchange<'_> {
    async fn collection(
        &self,
        verb: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        match verb {
            "list" => self.list(None).await,
            "watch" => self.watch(None).await,
            "create" => {
                let object = object_of(request).await?;
                let created = self
                    .cluster
                    .registry
                    .create(self.place, object, self.dry_run()?)
                    .await?;
                Ok(self.show(StatusCode::CREATED, created))
            }
            "deletecollection" => self.delete_collection(request).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn object(
        &self,
        name: &str,
        part: Part,
        verb: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let registry = &self.cluster.registry;
        match verb {
            "get" => {
                let object = registry.get(self.place, name).await?;
                Ok(self.show(StatusCode::OK, object))
            }
            "watch" => self.watch(Some(name)).await,
            "update" => {
                let manager = self.manager(request.headers());
                let object = object_of(request).await?;
                let updated = registry
                    .update(self.place, name, part, object, self.write(&manager)?)
                    .await?;
                Ok(self.show(StatusCode::OK, updated))
            }
            "patch" if content_type(request.headers()) == patch::APPLY => {
                self.apply(name, part, request).await
            }
            "patch" => {
                let manager = self.manager(request.headers());
                let media_type = content_type(request.headers()).to_owned();
                let kind = PatchType::of(&media_type, self.place.resource)?;
                let patch = object_of(request).await?;
                let patched = registry
                    .modify(self.place, name, part, self.write(&manager)?, |current| {
                        patch::apply(kind, current.clone(), &patch)
                    })
                    .await?;
                Ok(self.show(StatusCode::OK, patched))
            }
            "delete" if part == Part::Object => self.delete(name, request).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn delete(
        &self,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let media_type = content_type(request.headers()).to_owned();
        let body = bytes_of(request).await?;
        let options = if body.is_empty() {
            Value::Null
        } else {
            parse(&media_type, body)?
        };
        let options = self.delete_options(&options)?;
        let deleted = self
            .cluster
            .registry
            .delete_with(self.place, name, &options)
            .await?;
        match deleted {
            Deleted::Later(object) => {
                if self.place.resource.kind == "Namespace" {
                    self.cluster.namespaces.push(name);
                }
                Ok(self.show(StatusCode::OK, object))
            }
            // Pods answer with themselves, since they usually take their time.
            Deleted::Now(object) if self.place.resource.kind == "Pod" => {
                Ok(self.show(StatusCode::OK, object))
            }
            Deleted::Now(object) => {
                let mut details = json!({
                    "name": name, "kind": self.place.resource.plural,
                    "uid": object["metadata"]["uid"],
                });
                if !self.place.resource.group.is_empty() {
                    details["group"] = json!(self.place.resource.group);
                }
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": details,
                });
                Ok(json_response(StatusCode::OK, &status))
            }
        }
    }

    /// What a delete's body asks for, or its query.
    fn delete_options(&self, body: &Value) -> Result<DeleteOptions, ApiError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let asked = match body["propagationPolicy"].as_str() {
            None | Some("") => self.query.get("propagationPolicy"),
            Some(policy) => policy,
        };
        let propagation = match asked {
            "" if body["orphanDependents"] == true => Some(Propagation::Orphan),
            "" => None,
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            "Orphan" => Some(Propagation::Orphan),
            other => {
                return Err(ApiError::bad_request(format!(
                    "invalid propagationPolicy: {other:?}"
                )));
            }
        };
        let grace_period_seconds = match body["gracePeriodSeconds"].as_i64() {
            None => self.query.number("gracePeriodSeconds")?,
            given => given,
        };
        if let Some(negative) = grace_period_seconds.filter(|seconds| *seconds < 0) {
            return Err(ApiError::bad_request(format!(
                "invalid gracePeriodSeconds: {negative}: must be greater than or equal to 0"
            )));
        }
        Ok(DeleteOptions {
            preconditions: Preconditions {
                uid: text(&body["preconditions"]["uid"]),
                resource_version: text(&body["preconditions"]["resourceVersion"]),
            },
            dry_run: self.dry_run()? || body["dryRun"] == json!(["All"]),
            grace_period_seconds,
            propagation,
        })
    }

    async fn delete_collection(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let registry = &self.cluster.registry;
        let media_type = content_type(request.headers()).to_owned();
        let body = bytes_of(request).await?;
        let options = if body.is_empty() {
            Value::Null
        } else {
            parse(&media_type, body)?
        };
        let options = DeleteOptions {
            preconditions: Preconditions::default(),
            ..self.delete_options(&options)?
        };
        let list = registry.list(self.place, &self.list_options(None)?).await?;
        let mut deleted = Vec::new();
        for object in list.items {
            let name = name_of(&object);
            let namespace = object["metadata"]["namespace"].as_str();
            let place = Place {
                namespace,
                ..self.place
            };
            match registry.delete_with(place, &name, &options).await {
                Ok(Deleted::Now(object) | Deleted::Later(object)) => deleted.push(object),
                // Somebody else was faster.
                Err(error) if error.code == StatusCode::NOT_FOUND => {}
                Err(error) => return Err(error),
            }
        }
        let metadata = json!({"resourceVersion": list.resource_version.to_string()});
        Ok(self.show_list(deleted, metadata))
    }

    async fn list(&self, name: Option<&str>) -> Result<Response<Body>, ApiError> {
        let list = self
            .cluster
            .registry
            .list(self.place, &self.list_options(name)?)
            .await?;
        let metadata = list.metadata();
        Ok(self.show_list(list.items, metadata))
    }

    fn selector(&self, name: Option<&str>) -> Result<Selector, ApiError> {
        let named = match name {
            Some(name) => format!("metadata.name={name}"),
            None => self.query.get("fieldSelector").to_owned(),
        };
        Selector::parse(self.query.get("labelSelector"), &named)
    }

    fn list_options(&self, name: Option<&str>) -> Result<ListOptions, ApiError> {
        Ok(ListOptions {
            selector: self.selector(name)?,
            limit: self.query.number("limit")?.unwrap_or(0),
            continue_token: self.query.get("continue").to_owned(),
            resource_version: self.query.get("resourceVersion").to_owned(),
            exact: self.query.get("resourceVersionMatch") == "Exact",
        })
    }

    async fn watch(&self, name: Option<&str>) -> Result<Response<Body>, ApiError> {
        let timeout = self.query.number("timeoutSeconds")?;
        let options = WatchOptions {
            selector: self.selector(name)?,
            resource_version: self.query.get("resourceVersion").to_owned(),
            bookmarks: self.query.flag("allowWatchBookmarks"),
            initial_events: match self.query.get("sendInitialEvents") {
                "" => None,
                _ => Some(self.query.flag("sendInitialEvents")),
            },
            timeout: timeout
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        };
        let resource = self.place.resource;
        let render: super::registry::watch::Render = match self.render {
            Render::Objects => Box::new(|object| object),
            Render::Table(include) => {
                let clock = self.cluster.registry.clock().clone();
                Box::new(move |object| {
                    let metadata =
                        json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                    table(resource, vec![object], metadata, include, clock.now())
                })
            }
        };
        let events = self
            .cluster
            .registry
            .watch(self.place, options, render, self.cluster.ended.clone())
            .await?;
        let mut response =
            Response::new(stream(tokio_stream::wrappers::ReceiverStream::new(events)));
        set_content_type(&mut response, "application/json");
        Ok(response)
    }

    /// Who writes: as the request says, or by the client's name.
    fn manager(&self, headers: &HeaderMap) -> String {
        let given = self.query.get("fieldManager");
        if !given.is_empty() {
            return given.to_owned();
        }
        let agent = headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("");
        match agent.split('/').next() {
            Some(name) if !name.is_empty() => name.chars().take(128).collect(),
            _ => String::from("unknown"),
        }
    }

    fn write<'m>(&self, manager: &'m str) -> Result<WriteOptions<'m>, ApiError> {
        Ok(WriteOptions {
            manager,
            subresource: "",
            dry_run: self.dry_run()?,
        })
    }

    /// Server-side apply.
    async fn apply(
        &self,
        name: &str,
        part: Part,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let manager = self.query.get("fieldManager");
        if manager.is_empty() {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required \
                 for apply patch",
            ));
        }
        let body = bytes_of(request).await?;
        let config = applied_configuration(&body)?;
        let (force, options) = (self.query.flag("force"), self.write(manager)?);
        let registry = &self.cluster.registry;
        let (created, object) = registry
            .apply(self.place, name, part, config, force, options)
            .await?;
        let code = if created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        Ok(self.show(code, object))
    }

    fn dry_run(&self) -> Result<bool, ApiError> {
        match self.query.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(ApiError::bad_request(format!(
                "invalid dryRun value: {other:?}"
            ))),
        }
    }

    fn show(&self, code: StatusCode, object: Value) -> Response<Body> {
        match self.render {
            Render::Objects => json_response(code, &object),
            Render::Table(include) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let now = self.cluster.registry.now();
                let table = table(self.place.resource, vec![object], metadata, include, now);
                json_response(code, &table)
            }
        }
    }

    fn show_list(&self, items: Vec<Value>, metadata: Value) -> Response<Body> {
        let resource: &Resource = self.place.resource;
        let shown = match self.render {
            Render::Objects => json!({
                "kind": format!("{}List", resource.kind),
                "apiVersion": resource.api_version(),
                "metadata": metadata,
                "items": items,
            }),
            Render::Table(include) => table(
                resource,
                items,
                metadata,
                include,
                self.cluster.registry.now(),
            ),
        };
        json_response(StatusCode::OK, &shown)
    }
}

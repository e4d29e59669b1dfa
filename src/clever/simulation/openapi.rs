//! Operations, and the OpenAPI document that is made of them: what is routed is what is documented.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::clever::Clever;

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What is documented of one operation.
pub struct Operation {
    method: MethodFilter,
    name: &'static str,
    path: &'static str,
    summary: &'static str,
    query: Vec<(&'static str, &'static str)>,
    request: Option<SchemaOf>,
    request_media_type: Option<&'static str>,
    response: Option<SchemaOf>,
    media_type: &'static str,
}

impl Operation {
    fn new(
        method: MethodFilter,
        name: &'static str,
        path: &'static str,
        summary: &'static str,
    ) -> Operation {
        Operation {
            method,
            name,
            path,
            summary,
            query: Vec::new(),
            request: None,
            request_media_type: None,
            response: None,
            media_type: "application/json",
        }
    }

    pub fn get(path: &'static str, summary: &'static str) -> Operation {
        Operation::new(MethodFilter::GET, "get", path, summary)
    }

    pub fn post(path: &'static str, summary: &'static str) -> Operation {
        Operation::new(MethodFilter::POST, "post", path, summary)
    }

    pub fn put(path: &'static str, summary: &'static str) -> Operation {
        Operation::new(MethodFilter::PUT, "put", path, summary)
    }

    pub fn delete(path: &'static str, summary: &'static str) -> Operation {
        Operation::new(MethodFilter::DELETE, "delete", path, summary)
    }

    /// A parameter of the query, always optional.
    pub fn query(mut self, name: &'static str, description: &'static str) -> Operation {
        self.query.push((name, description));
        self
    }

    pub fn takes<T: JsonSchema>(mut self) -> Operation {
        self.request = Some(|generator| generator.subschema_for::<T>());
        self
    }

    /// Takes something else than JSON.
    pub fn takes_as(mut self, media_type: &'static str) -> Operation {
        self.request_media_type = Some(media_type);
        self
    }

    pub fn answers<T: JsonSchema>(mut self) -> Operation {
        self.response = Some(|generator| generator.subschema_for::<T>());
        self
    }

    /// Answers something else than JSON.
    pub fn answers_as(mut self, media_type: &'static str) -> Operation {
        self.media_type = media_type;
        self
    }

    fn document(&self, generator: &mut SchemaGenerator) -> Value {
        let in_path = self.path.split('/').filter_map(|segment| {
            let name = segment.strip_prefix('{')?.strip_suffix('}')?;
            Some(
                json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
            )
        });
        let in_query = self.query.iter().map(|(name, description)| {
            json!({"name": name, "in": "query", "description": description, "schema": {"type": "string"}})
        });
        let mut success = json!({"description": "Done"});
        let schema = self.response.map(|schema| schema(generator).to_value());
        if let Some(schema) = schema {
            success["content"] = json!({self.media_type: {"schema": schema}});
        } else if self.media_type != "application/json" {
            success["content"] = json!({self.media_type: {"schema": {"type": "string"}}});
        }
        let mut operation = json!({
            "summary": self.summary,
            "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
            "responses": {
                "200": success,
                "default": {
                    "description": "Refused; nothing has changed",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        });
        if let Some(request) = self.request {
            let schema = request(generator).to_value();
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        if let Some(media_type) = self.request_media_type {
            let content = json!({media_type: {"schema": {"type": "string", "format": "binary"}}});
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        operation
    }
}

/// Operations with their handlers.
pub struct Api {
    router: Router<Clever>,
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Default for Api {
    fn default() -> Api {
        Api {
            router: Router::new(),
            generator: SchemaSettings::openapi3().into_generator(),
            paths: Map::new(),
        }
    }
}

impl Api {
    pub fn add<H, T>(mut self, operation: Operation, handler: H) -> Api
    where
        H: Handler<T, Clever>,
        T: 'static,
    {
        let document = operation.document(&mut self.generator);
        let path = self
            .paths
            .entry(operation.path)
            .or_insert_with(|| Value::Object(Map::new()));
        path[operation.name] = document;
        self.router = self
            .router
            .route(operation.path, on(operation.method, handler));
        self
    }

    pub fn router(self) -> Router<Clever> {
        self.router
    }

    pub fn document(mut self) -> Value {
        let mut schemas = self.generator.take_definitions(true);
        schemas.insert(
            String::from("Error"),
            json!({
                "type": "object",
                "required": ["apiRequestId", "code", "context", "error"],
                "properties": {
                    "apiRequestId": {"type": "string"},
                    "code": {"type": "string"},
                    "context": {"type": "object"},
                    "error": {"type": "string"},
                },
            }),
        );
        json!({
            "openapi": "3.0.3",
            "info": {
                "title": "cke: control over the simulation",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "paths": self.paths,
            "components": {"schemas": schemas},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::api;
    use serde_json::Value;

    /// Every `$ref` under `value`.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    found.push(reference.clone());
                }
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_is_whole() {
        let document = api().document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a reference within");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (path, operations) in document["paths"].as_object().expect("paths") {
            assert!(path.starts_with("/_sim/"), "{path}");
            for (method, operation) in operations.as_object().expect("operations") {
                let summary = operation["summary"].as_str().unwrap_or_default();
                assert!(!summary.is_empty(), "{method} {path}");
            }
        }
    }
}

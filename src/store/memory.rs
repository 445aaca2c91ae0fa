//! Objects in this process's memory, for tests and models.
//!
//! Knows: nothing outside this process. Several [`MemoryStore`]s of one
//! [`MemoryService`] see the same containers, like several hosts on one Swift.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ErrorKind, Listed, Metadata, ObjectStore, StoreError, check};

/// What a container holds.
#[derive(Debug, Clone, Default)]
struct Container {
    metadata: Metadata,
    objects: BTreeMap<String, Bytes>,
}

type Containers = BTreeMap<String, Container>;

/// The containers that several stores share. A clone is the same service.
#[derive(Debug, Clone, Default)]
pub struct MemoryService {
    containers: Arc<Mutex<Containers>>,
}

impl MemoryService {
    /// A service without containers.
    pub fn new() -> MemoryService {
        MemoryService::default()
    }

    /// A store of this container, which need not exist yet.
    pub fn store(&self, container: &str) -> MemoryStore {
        MemoryStore {
            service: self.clone(),
            container: container.to_owned(),
        }
    }

    /// A deep copy: what somebody who stopped the world would find.
    pub fn snapshot(&self) -> MemoryService {
        MemoryService {
            containers: Arc::new(Mutex::new(self.lock().clone())),
        }
    }

    /// The names of the objects in this container, ascending.
    pub fn names(&self, container: &str) -> Vec<String> {
        let containers = self.lock();
        let objects = containers.get(container).map(|found| &found.objects);
        objects
            .into_iter()
            .flat_map(BTreeMap::keys)
            .cloned()
            .collect()
    }

    /// An object's body.
    pub fn object(&self, container: &str, name: &str) -> Option<Bytes> {
        self.lock().get(container)?.objects.get(name).cloned()
    }

    /// Puts an object there, or with `None` takes it away, behind the back of
    /// every store; makes the container when it is missing.
    pub fn set_object(&self, container: &str, name: &str, body: Option<Bytes>) {
        let mut containers = self.lock();
        let objects = &mut containers.entry(container.to_owned()).or_default().objects;
        match body {
            Some(body) => objects.insert(name.to_owned(), body),
            None => objects.remove(name),
        };
    }

    /// Removes a container and all that is in it.
    pub fn drop_container(&self, container: &str) {
        self.lock().remove(container);
    }

    fn lock(&self) -> MutexGuard<'_, Containers> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One container of a [`MemoryService`].
#[derive(Debug, Clone)]
pub struct MemoryStore {
    service: MemoryService,
    container: String,
}

impl MemoryStore {
    /// The service that it belongs to.
    pub fn service(&self) -> &MemoryService {
        &self.service
    }

    fn with<T>(
        &self,
        operation: &'static str,
        name: &str,
        work: impl FnOnce(&mut Container) -> T,
    ) -> Result<T, StoreError> {
        match self.service.lock().get_mut(&self.container) {
            Some(container) => Ok(work(container)),
            None => Err(self.error(ErrorKind::NoContainer, operation, name)),
        }
    }

    fn error(&self, kind: ErrorKind, operation: &'static str, name: &str) -> StoreError {
        let detail = match kind {
            ErrorKind::NoContainer => "the container does not exist",
            _ => "the object does not exist",
        };
        StoreError::new(
            kind,
            operation,
            check::target(&self.container, name),
            detail,
        )
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        check::name("GET", &self.container, name)?;
        self.with("GET", name, |container| {
            container.objects.get(name).cloned()
        })?
        .ok_or_else(|| self.error(ErrorKind::NotFound, "GET", name))
    }

    async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        check::range(&self.container, name, offset, length, u64::MAX)?;
        let body = self.get(name).await?;
        let within = |at: u64| at.min(body.len() as u64) as usize;
        Ok(body.slice(within(offset)..within(offset + length)))
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<(), StoreError> {
        check::put(&self.container, name, &body)?;
        self.with("PUT", name, |container| {
            container.objects.insert(name.to_owned(), body);
        })
    }

    async fn put_new(&self, name: &str, body: Bytes) -> Result<bool, StoreError> {
        check::put(&self.container, name, &body)?;
        self.with("PUT", name, |container| {
            let absent = !container.objects.contains_key(name);
            if absent {
                container.objects.insert(name.to_owned(), body);
            }
            absent
        })
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        check::name("DELETE", &self.container, name)?;
        self.with("DELETE", name, |container| {
            container.objects.remove(name);
        })
    }

    async fn list(
        &self,
        after: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        check::limit(&self.container, limit)?;
        self.with("list", "", |container| {
            container
                .objects
                .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
                .take_while(|(name, _)| before.is_empty() || name.as_str() < before)
                .take(limit)
                .map(|(name, body)| Listed {
                    name: name.clone(),
                    size: body.len() as u64,
                })
                .collect()
        })
    }

    async fn metadata(&self) -> Result<Metadata, StoreError> {
        self.with("HEAD", "", |container| container.metadata.clone())
    }

    async fn set_metadata(&self, changes: &Metadata) -> Result<(), StoreError> {
        check::metadata(&self.container, changes)?;
        self.with("POST", "", |container| {
            for (key, value) in changes {
                match value.as_str() {
                    "" => container.metadata.remove(key),
                    _ => container.metadata.insert(key.clone(), value.clone()),
                };
            }
        })
    }

    async fn create(&self) -> Result<bool, StoreError> {
        check::container(&self.container)?;
        let mut service = self.service.lock();
        let made = !service.contains_key(&self.container);
        service.entry(self.container.clone()).or_default();
        Ok(made)
    }

    async fn remove(&self) -> Result<(), StoreError> {
        let mut containers = self.service.lock();
        match containers.get(&self.container) {
            Some(found) if !found.objects.is_empty() => Err(check::not_empty(
                &self.container,
                "the container is not empty",
            )),
            _ => {
                containers.remove(&self.container);
                Ok(())
            }
        }
    }

    async fn settle(&self) {}

    fn linger(&self) -> Duration {
        Duration::ZERO
    }
}

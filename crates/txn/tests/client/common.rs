//! A transaction's steps, on rows that are texts.

use base::{Key, KeyRange};
use bytes::Bytes;
use txn::{Client, Error, Isolation, LockMode, Txn, Wait};

pub fn key(name: &str) -> Key {
    let mut key = 100u32.to_be_bytes().to_vec();
    key.extend_from_slice(name.as_bytes());
    key.into()
}

pub async fn put(txn: &mut Txn, name: &str, value: &str) -> Result<(), Error> {
    txn.lock(&[key(name)], LockMode::Exclusive, Wait::Block).await?;
    txn.put(key(name), Bytes::copy_from_slice(value.as_bytes())).unwrap();
    Ok(())
}

pub async fn get(txn: &mut Txn, name: &str) -> Result<Option<String>, Error> {
    let rows = txn.get(&[key(name)]).await?;
    Ok(rows[0].as_ref().map(|row| String::from_utf8_lossy(&row.value).into_owned()))
}

pub async fn all(txn: &mut Txn, reverse: bool) -> Vec<String> {
    let mut scan = txn.reader().await.unwrap().scan(KeyRange::prefix(key("")), reverse, Some(2));
    let mut rows = vec![];
    loop {
        let batch = scan.next_batch().await.unwrap();
        if batch.is_empty() {
            return rows;
        }
        rows.extend(batch.into_iter().map(|(key, row)| {
            format!(
                "{}={}",
                String::from_utf8_lossy(&key[4..]),
                String::from_utf8_lossy(&row.value)
            )
        }));
    }
}

pub async fn set(client: &Client, pairs: &[(&str, &str)]) {
    let mut txn = client.begin(Isolation::ReadCommitted);
    for (name, value) in pairs {
        put(&mut txn, name, value).await.unwrap();
    }
    txn.commit().await.unwrap();
}

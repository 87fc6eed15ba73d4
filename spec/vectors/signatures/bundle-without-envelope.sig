{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"25496c4f052e3158e0f5c50f9faced2126d4ac936aeee9d7e5c749719a562c8c"},"tlogEntries":[]}}

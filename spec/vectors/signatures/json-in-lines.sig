 	
{
 "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
 "verificationMaterial": {
  "publicKey": {
   "hint": "25496c4f052e3158e0f5c50f9faced2126d4ac936aeee9d7e5c749719a562c8c"
  },
  "tlogEntries": []
 },
 "dsseEnvelope": {
  "payload": "ewogICJcdTAwNWZ0eXBlIjogImh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEiLAogICJzdWJqZWN0IjogWwogICAgewogICAgICAibmFtZSI6ICJzbWFsbGVzdC5ic3RrIiwKICAgICAgImRpZ2VzdCI6IHsKICAgICAgICAic2hhMjU2IjogIjhhNTAzOWZjMGVmNTYyYzJmOTAwNTQ1OGFhMjMyOWExZDQxODk1YmQyNGRlNjY3YmI4MGZhYjZlZmYwMGM4NzciCiAgICAgIH0KICAgIH0KICBdLAogICJwcmVkaWNhdGVUeXBlIjogImh0dHBzOi8vbW9kZWxfc2lnbmluZy9zaWduYXR1cmUvdjEuMCIsCiAgInByZWRpY2F0ZSI6IHsKICAgICJzZXJpYWxpemF0aW9uIjogewogICAgICAibWV0aG9kIjogImZpbGVzIiwKICAgICAgImhhc2hcdTAwNWZ0eXBlIjogInNoYTI1NiIsCiAgICAgICJhbGxvd19zeW1saW5rcyI6IGZhbHNlLAogICAgICAiaWdub3JlX3BhdGhzIjogW10KICAgIH0sCiAgICAicmVzb3VyY2VzIjogWwogICAgICB7CiAgICAgICAgIm5hbWUiOiAiLiIsCiAgICAgICAgImFsZ29yaXRobSI6ICJzaGEyNTYiLAogICAgICAgICJkaWdlc3QiOiAiMGYwNTQyNzBmOWVhN2I0Y2E0MTIxY2JkM2MwMmIxMjM2YjdlNDMwYTc3NTk2Y2Y4MDhkNjgyZTIxYTQyMzMwYyIKICAgICAgfQogICAgXSwKICAgICJic3RrIjogewogICAgICAicm9vdCI6ICJiMjE3OWVmMjcxMzc3OWVhMjAzZTQ1MjhjODU3MmEzYjdiYzc1YzFlMDVlY2VhZmRkYmE4NjRjYTViZjQwNDM0IgogICAgfQogIH0KfQ==",
  "payloadType": "application/vnd.in-toto+json",
  "signatures": [
   {
    "sig": "MEUCIQCbTPOghEeo1w8y0dxhhrWG9+Cp1KAfxy00KCoysaxhqwIgBw/JijNxx3iN+GEkr8YvH+/HzyY7lh0/NejzmgrXpno=",
    "keyid": ""
   }
  ]
 }
}
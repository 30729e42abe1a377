"""The scopes of API keys: what each allows, and which others it contains. Imports nothing, for the command line."""

# watch: read /metrics, which are about all collections. verify: compare, search, and list what is enrolled.
# enroll: that, and enroll, change and delete identities. admin: everything.
SCOPES = {
    "watch": frozenset({"watch"}),
    "verify": frozenset({"verify"}),
    "enroll": frozenset({"verify", "enroll"}),
    "admin": frozenset({"watch", "verify", "enroll", "admin"}),
}

package peer

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"testing"
)

// Slapd is an OpenLDAP server of the test's own for dc=example,dc=org. Its administrator is SlapdAdmin.
type Slapd struct {
	*server
	TLSAddr string // where it listens with TLS; Addr also does STARTTLS
}

// The one who may write, and who may read more than 500 entries at once.
const (
	SlapdAdmin    = "cn=admin,dc=example,dc=org"
	SlapdPassword = "secret"
)

// NewSlapd loads the LDIF below dc=example,dc=org; Start starts it. Besides the schema of inetOrgPerson it knows
// proxyAddresses of Active Directory, in the class mailRecipient. Its certificate is cert.
func NewSlapd(t testing.TB, ldif string, cert tls.Certificate) *Slapd {
	t.Helper()
	Require(t, "slapd", "slapadd")
	s := &Slapd{server: newServer(t), TLSAddr: FreeAddr(t)}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	write(t, s.path("cert.pem"), string(chain))
	write(t, s.path("key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	write(t, s.path("slapd.conf"), fmt.Sprintf(slapdConf, s.dir, s.dir, s.dir, SlapdAdmin, SlapdPassword, s.dir))
	write(t, s.path("data.ldif"), "dn: dc=example,dc=org\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n\n"+ldif)
	s.prepare("mkdir", s.path("db"))
	s.prepare("slapadd", "-f", s.path("slapd.conf"), "-l", s.path("data.ldif"))
	s.argv = []string{"slapd", "-f", s.path("slapd.conf"), "-h", "ldap://" + s.Addr + " ldaps://" + s.TLSAddr, "-d", "0"}
	return s
}

// slapdConf limits an anonymous client to 500 entries a search, as servers do.
const slapdConf = `include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
attributetype ( 1.2.840.113556.1.2.210 NAME 'proxyAddresses' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 1.3.6.1.4.1.32473.1.1 NAME 'mailRecipient' SUP top AUXILIARY MAY ( mail $ proxyAddresses ) )
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile %s/slapd.pid
TLSCertificateFile %s/cert.pem
TLSCertificateKeyFile %s/key.pem
sizelimit size=500
database mdb
suffix "dc=example,dc=org"
rootdn "%s"
rootpw %s
directory %s/db
maxsize 268435456
`

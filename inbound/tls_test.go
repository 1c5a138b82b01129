package inbound

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate and its key, as PEM.
func (a *authority) issue(t *testing.T, name string, usage x509.ExtKeyUsage) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func commonName(t *testing.T, c *tls.Certificate) string {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.Subject.CommonName
}

func TestCertificateIsReloadedWhenItsFilesChange(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	files := Certificate{Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem")}
	renew := func(name string, mtime time.Time) {
		cert, key := a.issue(t, name, x509.ExtKeyUsageServerAuth)
		write(t, files.Cert, cert)
		write(t, files.Key, key)
		for _, f := range []string{files.Cert, files.Key} {
			if err := os.Chtimes(f, mtime, mtime); err != nil {
				t.Fatal(err)
			}
		}
	}
	now := time.Now()
	renew("first.example.org", now)
	log := slog.New(slog.DiscardHandler)
	f := &certFile{Certificate: files}
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	renew("second.example.org", now.Add(time.Second))
	if got := commonName(t, f.current(now.Add(certCheck), log)); got != "second.example.org" {
		t.Errorf("after a renewal: %s", got)
	}
	write(t, files.Key, []byte("half a k"))
	if got := commonName(t, f.current(now.Add(2*certCheck), log)); got != "second.example.org" {
		t.Errorf("in the middle of a renewal: %s", got)
	}
	renew("third.example.org", now.Add(2*time.Second))
	if got := commonName(t, f.current(now.Add(2*certCheck+time.Second), log)); got != "second.example.org" {
		t.Errorf("looked at the files again within %s: %s", certCheck, got)
	}
	if got := commonName(t, f.current(now.Add(3*certCheck), log)); got != "third.example.org" {
		t.Errorf("after the renewal: %s", got)
	}
}

func TestCertificateIsChosenByName(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	cfg := testConfig(t)
	for _, name := range []string{"mx2.example.org", "mx2.example.com"} {
		c := Certificate{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")}
		cert, key := a.issue(t, name, x509.ExtKeyUsageServerAuth)
		write(t, c.Cert, cert)
		write(t, c.Key, key)
		cfg.TLS.Certificates = append(cfg.TLS.Certificates, c)
	}
	r := start(t, cfg, nil)
	for asked, want := range map[string]string{
		"mx2.example.com": "mx2.example.com", "mx2.example.org": "mx2.example.org", "other.example": "mx2.example.org", "": "mx2.example.org",
	} {
		c := dial(t, r.addr())
		c.want("220")
		c.startTLS(&tls.Config{InsecureSkipVerify: true, ServerName: asked})
		if got := c.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("asked for %q: got %s, want %s", asked, got, want)
		}
	}
}

func TestMissingCertificateIsAnErrorOfListen(t *testing.T) {
	cfg := testConfig(t)
	cfg.TLS.Certificates = []Certificate{{Cert: "/nowhere/c.pem", Key: "/nowhere/k.pem"}}
	s, err := New(cfg, Deps{Spool: &memorySpool{}, Policy: testPolicy{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err == nil || !strings.Contains(err.Error(), "/nowhere/c.pem") {
		t.Errorf("got %v", err)
	}
}

func TestSelfSignedCertificateIsKept(t *testing.T) {
	dir, log, now := filepath.Join(t.TempDir(), "new"), slog.New(slog.DiscardHandler), time.Now()
	serial := func(hostname string, now time.Time) string {
		c, err := selfSigned(dir, hostname, now, log)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Leaf.VerifyHostname(hostname); err != nil {
			t.Error(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	first := serial("mx2.example.org", now)
	if got := serial("mx2.example.org", now.Add(time.Hour)); got != first {
		t.Error("made anew without need")
	}
	renewed := serial("mx2.example.org", now.Add(selfSignedLife-selfSignedLeft))
	if renewed == first {
		t.Error("not made anew before its end")
	}
	if got := serial("other.example.org", now); got == renewed {
		t.Error("not made anew for another name")
	}
	info, err := os.Stat(filepath.Join(dir, selfSignedName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// STARTTLS works even where nothing can be kept.
func TestSelfSignedCertificateNeedsNoFolder(t *testing.T) {
	for _, dir := range []string{"", "/proc/nowhere"} {
		if _, err := selfSigned(dir, "mx2.example.org", time.Now(), slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("%q: %v", dir, err)
		}
	}
}

// A client with a certificate of the authority that the operator named may use ETRN; a certificate of any other costs
// a sender nothing.
func TestETRNByClientCertificate(t *testing.T) {
	ours, other, dir := newAuthority(t), newAuthority(t), t.TempDir()
	cfg := testConfig(t)
	cfg.ETRN.ClientCA = filepath.Join(dir, "ca.pem")
	write(t, cfg.ETRN.ClientCA, ours.pem)
	r := start(t, cfg, func(d *Deps) { d.Recovered = func(context.Context, string) error { return nil } })
	for _, tt := range []struct {
		name, want string
		a          *authority
		usage      x509.ExtKeyUsage
	}{
		{"ours", "250 2.0.0", ours, x509.ExtKeyUsageClientAuth},
		{"ours, for servers", "459 4.7.1", ours, x509.ExtKeyUsageServerAuth},
		{"another's", "459 4.7.1", other, x509.ExtKeyUsageClientAuth},
		{"none", "459 4.7.1", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf := &tls.Config{InsecureSkipVerify: true}
			if tt.a != nil {
				cert, key := tt.a.issue(t, "primary.example.org", tt.usage)
				pair, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			c := dial(t, r.addr())
			c.want("220")
			c.startTLS(conf)
			c.say("EHLO x", "250")
			c.say("ETRN example.org", tt.want)
			c.transaction()
		})
	}
}

// A handshake that never ends holds a connection for a minute, not for ever.
func TestHandshakeHasALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, dial := bubble(t, testConfig(t), nil)
		c := dial().hello()
		c.say("STARTTLS", "220")
		begun := time.Now()
		if got := c.line(); got != "" {
			t.Errorf("got %q", got)
		}
		if took := time.Since(begun); took != tlsTimeout {
			t.Errorf("ended after %s", took)
		}
	})
}

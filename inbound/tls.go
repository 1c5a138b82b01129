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
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	certCheck      = 10 * time.Second // how often at most the files of a certificate are looked at
	selfSignedName = "self-signed.pem"
	selfSignedLife = 10 * 365 * 24 * time.Hour
	selfSignedLeft = 30 * 24 * time.Hour // with less than this it is made anew
)

// certificates are what we show in handshakes: from files if any are configured, else from ACME, else one that we
// signed ourselves. STARTTLS works with each of them, as senders that do not verify gain from any.
type certificates struct {
	log      *slog.Logger
	files    []*certFile
	own      *tls.Certificate                // nil if there are files
	acme     atomic.Pointer[tls.Certificate] // nil until there is one
	acmeRun  func(ctx context.Context, c *certificates) error
	clientCA *x509.CertPool
	conf     *tls.Config
}

// openCertificates reads or makes what the configuration asks for.
func openCertificates(cfg *Config, log *slog.Logger) (*certificates, error) {
	c := &certificates{log: log}
	for _, f := range cfg.TLS.Certificates {
		file := &certFile{Certificate: f}
		if err := file.load(); err != nil {
			return nil, err
		}
		c.files = append(c.files, file)
	}
	if len(c.files) == 0 {
		own, err := selfSigned(cfg.StateDir, cfg.Hostname, time.Now(), log)
		if err != nil {
			return nil, err
		}
		c.own = own
	}
	if cfg.ACME.Enabled {
		run, err := openACME(cfg, log)
		if err != nil {
			return nil, err
		}
		c.acmeRun = run
	}
	c.conf = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
	if cfg.ETRN.ClientCA != "" {
		pool, err := readPool(cfg.ETRN.ClientCA)
		if err != nil {
			return nil, err
		}
		c.clientCA = pool
		c.conf.ClientAuth = tls.RequestClientCert
	}
	return c, nil
}

func (c *certificates) config() *tls.Config { return c.conf }

// run keeps an ACME certificate fresh until ctx is done.
func (c *certificates) run(ctx context.Context) error {
	if c.acmeRun == nil {
		return nil
	}
	return c.acmeRun(ctx, c)
}

// get chooses the certificate for a client.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	var first *tls.Certificate
	for _, f := range c.files {
		cert := f.current(time.Now(), c.log)
		if hello.SupportsCertificate(cert) == nil {
			return cert, nil
		}
		if first == nil {
			first = cert
		}
	}
	if first != nil { // many senders ask for a name that is not ours, or for none
		return first, nil
	}
	if cert := c.acme.Load(); cert != nil {
		return cert, nil
	}
	return c.own, nil
}

// certFile is a certificate that follows its files.
type certFile struct {
	Certificate

	mu      sync.Mutex
	cert    *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
}

type fileStamp struct {
	modified time.Time
	size     int64
}

func (f *certFile) stamps() (s [2]fileStamp, err error) {
	for i, name := range []string{f.Cert, f.Key} {
		info, err := os.Stat(name)
		if err != nil {
			return s, err
		}
		s[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return s, nil
}

func (f *certFile) load() error {
	stamp, err := f.stamps()
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", f.Cert, err)
	}
	f.cert, f.stamp = &cert, stamp
	return nil
}

// current returns the certificate, read again if its files have changed. While they can't be read, in the middle of a
// renewal or by mistake, the old one goes on.
func (f *certFile) current(now time.Time, log *slog.Logger) *tls.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.checked) < certCheck {
		return f.cert
	}
	f.checked = now
	stamp, err := f.stamps()
	if err == nil && stamp == f.stamp {
		return f.cert
	}
	if err == nil {
		err = f.load()
	}
	if err != nil {
		log.Error("certificate not reloaded", "err", err)
		return f.cert
	}
	log.Info("certificate reloaded", "file", f.Cert)
	return f.cert
}

// selfSigned reads our own certificate from the state folder, or makes one and keeps it there.
func selfSigned(dir, hostname string, now time.Time, log *slog.Logger) (*tls.Certificate, error) {
	file := filepath.Join(dir, selfSignedName)
	if dir != "" {
		cert, err := readSelfSigned(file, hostname, now)
		if err == nil {
			return cert, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			log.Info("self-signed certificate is made anew", "err", err)
		}
	}
	text, err := signSelf(hostname, now)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	if dir != "" {
		if err := keepFile(file, text); err != nil { // not worth a refusal to start: it only protects against listeners
			log.Warn("self-signed certificate not kept", "err", err)
		}
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	return &cert, nil
}

func readSelfSigned(file, hostname string, now time.Time) (*tls.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := cert.Leaf.VerifyHostname(hostname); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if cert.Leaf.NotAfter.Sub(now) < selfSignedLeft {
		return nil, fmt.Errorf("%s: ends at %s", file, cert.Leaf.NotAfter)
	}
	return &cert, nil
}

// signSelf makes a key and a certificate for hostname, as PEM.
func signSelf(hostname string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: hostname[:min(len(hostname), 64)]}, // RFC 5280, A.1: ub-common-name
		DNSNames:     []string{hostname},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.Add(selfSignedLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}

// keepFile writes a secret in one step.
func keepFile(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func readPool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return pool, nil
}

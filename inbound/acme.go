package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/sync/errgroup"
)

const (
	acmeRetry   = 10 * time.Minute // after a failure; authorities limit failed orders by the hour
	acmeRefresh = time.Hour        // how often a certificate that autocert renewed is picked up
)

// openACME prepares to get a certificate from an authority. Handshakes never wait for it: until there is one, and
// whenever it can't be renewed, they use what there is.
func openACME(cfg *Config, log *slog.Logger) (func(context.Context, *certificates) error, error) {
	client := &acme.Client{DirectoryURL: cfg.ACME.Directory}
	if cfg.ACME.RootCAs != "" {
		pool, err := readPool(cfg.ACME.RootCAs)
		if err != nil {
			return nil, err
		}
		client.HTTPClient = &http.Client{
			Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
		}
	}
	m := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(filepath.Join(cfg.StateDir, "acme")),
		HostPolicy: autocert.HostWhitelist(cfg.Hostname),
		Client:     client,
		Email:      cfg.ACME.Email,
	}
	ln, err := net.Listen("tcp", cfg.ACME.Listen)
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	web := &http.Server{
		Handler:     m.HTTPHandler(http.NotFoundHandler()),
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return func(ctx context.Context, c *certificates) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			if err := web.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("inbound: acme: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return web.Close()
		})
		g.Go(func() error { return obtain(ctx, m, cfg.Hostname, c) })
		return g.Wait()
	}, nil
}

// obtain gets the certificate and picks up its successors, which autocert orders in good time.
func obtain(ctx context.Context, m *autocert.Manager, hostname string, c *certificates) error {
	hello := &tls.ClientHelloInfo{ // asks for an ECDSA certificate, which all who speak TLS 1.2 can verify
		ServerName:       hostname,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
	for {
		wait := acmeRefresh
		cert, err := m.GetCertificate(hello)
		switch {
		case err != nil:
			c.log.Error("no certificate from the ACME authority", "err", err)
			wait = acmeRetry
		case c.acme.Swap(cert) == nil:
			c.log.Info("certificate from the ACME authority", "until", cert.Leaf.NotAfter)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

package policy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"
)

// fetchURL gets a list from a web server. A transfer without a length, neither given nor by chunks, could end anywhere
// and is not believed; one that is shorter than it said is an error of the transport.
func fetchURL(ctx context.Context, j job) (*content, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.cfg.URL, nil)
	if err != nil {
		return nil, err
	}
	if err := authorize(req, j); err != nil {
		return nil, err
	}
	conf, err := trust(j.cfg.CAFile)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, DisableCompression: true, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: sameScheme}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotModified && j.have != tag{}:
		return nil, errUnchanged
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %s", j.cfg.URL, res.Status)
	case res.Header.Get("Content-Encoding") != "":
		return nil, fmt.Errorf("%s is encoded with %s, which nobody asked for", j.cfg.URL, res.Header.Get("Content-Encoding"))
	case res.ContentLength < 0 && res.ProtoMajor == 1 && !slices.Contains(res.TransferEncoding, "chunked"):
		return nil, fmt.Errorf("%s gives no length, so nobody can tell whether it came whole", j.cfg.URL)
	case res.ContentLength > int64(j.cfg.MaxSize):
		return nil, fmt.Errorf("%s is larger than max_size", j.cfg.URL)
	}
	return readBody(ctx, j, res)
}

func authorize(req *http.Request, j job) error {
	if j.have.ETag != "" {
		req.Header.Set("If-None-Match", j.have.ETag)
	}
	if j.have.Modified != "" {
		req.Header.Set("If-Modified-Since", j.have.Modified)
	}
	req.Header.Set("User-Agent", "Understudy")
	if j.cfg.TokenFile == "" {
		return nil
	}
	token, err := readSecret(j.cfg.TokenFile)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token) // not sent on to another host (net/http)
	return nil
}

// sameScheme keeps a redirect from leaving TLS, and from going round in circles.
func sameScheme(req *http.Request, via []*http.Request) error {
	if len(via) > 3 {
		return errors.New("redirects more than three times")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("redirects to a place without TLS")
	}
	return nil
}

func readBody(ctx context.Context, j job, res *http.Response) (*content, error) {
	sum := sha256.New()
	s := &stream{r: io.TeeReader(res.Body, sum), limit: int64(j.cfg.MaxSize)}
	t := tag{ETag: res.Header.Get("ETag"), Modified: res.Header.Get("Last-Modified")}
	c, err := readContent(ctx, s, j.cfg.URL, j, t)
	if err == nil {
		_, err = io.Copy(io.Discard, s)
	}
	if s.err != nil {
		return nil, fmt.Errorf("%s: %w", j.cfg.URL, s.err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkDigest(res.Header, sum); err != nil {
		return nil, fmt.Errorf("%s: %w", j.cfg.URL, err)
	}
	return c, nil
}

// checkDigest holds the content against its SHA-256, where the server tells it (RFC 9530).
func checkDigest(h http.Header, sum hash.Hash) error {
	for _, field := range []string{"Repr-Digest", "Content-Digest"} {
		for _, member := range strings.Split(strings.Join(h.Values(field), ","), ",") {
			text, ok := strings.CutPrefix(strings.TrimSpace(member), "sha-256=:")
			if !ok {
				continue
			}
			want, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, ":"))
			if err != nil || subtle.ConstantTimeCompare(want, sum.Sum(nil)) != 1 {
				return fmt.Errorf("does not match its own %s", field)
			}
		}
	}
	return nil
}

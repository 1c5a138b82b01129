package inbound

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"

	"understudy/internal/mta"
)

// etrn obeys "ETRN domain" and "ETRN @domain", the domain and all below it (RFC 1985). A domain's primaries say with
// it that they are back; it is a hint, so what follows is a probe, and mail moves only if that is good.
func (w *wire) etrn(cmd command) {
	if !w.has("ETRN") {
		w.reply(cmd.verb, mta.NewReply(502, "5.5.1", "ETRN is not offered"))
		return
	}
	if !w.idle() {
		return
	}
	name, below := strings.CutPrefix(cmd.arg, "@")
	domain, err := mta.Domain(name)
	if err != nil {
		w.reply(cmd.verb, mta.NewReply(501, "5.5.4", "want ETRN domain or ETRN @domain"))
		return
	}
	domains := w.etrnDomains(domain, below)
	if len(domains) == 0 {
		w.log.Info("ETRN refused", "peer", w.remote, "domain", domain)
		w.reply(cmd.verb, mta.NewReply(459, "4.7.1", "%s is not for you to ask for", domain))
		return
	}
	reply := mta.NewReply(250, "2.0.0", "%s is being probed, and its mail will follow", domain)
	for _, d := range domains {
		if err := w.srv.deps.Recovered(w.srv.base(), d); err != nil {
			reply = w.etrnReply(err, domain)
		}
	}
	w.log.Info("ETRN", "peer", w.remote, "domain", domain, "code", reply.Code)
	w.reply(cmd.verb, reply)
}

func (w *wire) etrnReply(err error, domain string) *mta.Reply {
	if r, ok := errors.AsType[*mta.Reply](err); ok {
		return r
	}
	w.log.Error("own fault", "peer", w.remote, "domain", domain, "err", err)
	return mta.NewReply(458, "4.3.0", "%s can't be probed now", domain)
}

// etrnDomains are the domains that a request means and this client may ask for.
func (w *wire) etrnDomains(domain string, below bool) []string {
	candidates := []string{domain}
	if w.srv.deps.Domains != nil {
		candidates = w.srv.deps.Domains()
	}
	var list []string
	for _, d := range candidates {
		if d != domain && !(below && strings.HasSuffix(d, "."+domain)) {
			continue
		}
		if w.mayAskFor(d) {
			list = append(list, d)
		}
	}
	return list
}

func (w *wire) mayAskFor(domain string) bool {
	a := w.remote.Addr()
	if contains(w.srv.cfg.ETRN.Networks, a) || w.verified() {
		return true
	}
	return w.srv.deps.Primaries != nil && slices.Contains(w.srv.deps.Primaries(domain), a)
}

// verified tells whether the client has shown a certificate of the authority that the operator named. It is checked
// here and not in the handshake, where a stranger's certificate would cost him his mail.
func (w *wire) verified() bool {
	if w.secured == nil || w.srv.certs.clientCA == nil || len(w.secured.PeerCertificates) == 0 {
		return false
	}
	others := x509.NewCertPool()
	for _, c := range w.secured.PeerCertificates[1:] {
		others.AddCert(c)
	}
	_, err := w.secured.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: w.srv.certs.clientCA, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

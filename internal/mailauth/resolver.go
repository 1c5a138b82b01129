package mailauth

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"understudy/internal/dnsx"
)

// Resolver is what is asked of the DNS; *dnsx.Resolver is one. A name may hold any octet. An error that is
// dnsx.ErrNotFound says for certain that there is none, of which dnsx.ErrNoName is NXDOMAIN; any other is temporary.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupMX(ctx context.Context, domain string) (dnsx.MXs, error)
	LookupAddrs(ctx context.Context, host string) ([]netip.Addr, error)
	LookupPTR(ctx context.Context, addr netip.Addr) ([]string, error)
}

// bare gives an error the one type that the libraries for SPF and DKIM look at, unwrapped: what is not certain is
// temporary.
func bare(err error, name string) error {
	if err == nil {
		return nil
	}
	if d, ok := errors.AsType[*net.DNSError](err); ok && (d.IsNotFound || d.IsTemporary) {
		return d
	}
	notFound := errors.Is(err, dnsx.ErrNotFound)
	return &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: name, IsNotFound: notFound, IsTemporary: !notFound}
}

// spfResolver is a Resolver in the form of the SPF library.
type spfResolver struct{ r Resolver }

func (s spfResolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	txts, err := s.r.LookupTXT(ctx, name)
	return txts, bare(err, name)
}

func (s spfResolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	mxs, err := s.r.LookupMX(ctx, name)
	if err != nil {
		return nil, bare(err, name)
	}
	list := make([]*net.MX, 0, len(mxs.Hosts)+len(mxs.Bad))
	for _, mx := range mxs.Hosts {
		list = append(list, &net.MX{Host: mx.Host, Pref: mx.Pref})
	}
	for _, bad := range mxs.Bad { // they count towards the limit of ten, too
		list = append(list, &net.MX{Host: bad})
	}
	return list, nil
}

func (s spfResolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil { // as a name in the DNS it does not exist
		return nil, bare(dnsx.ErrNoName, host)
	}
	addrs, err := s.r.LookupAddrs(ctx, host)
	if err != nil {
		return nil, bare(err, host)
	}
	list := make([]net.IPAddr, len(addrs))
	for i, a := range addrs {
		list[i] = net.IPAddr{IP: a.AsSlice()}
	}
	return list, nil
}

func (s spfResolver) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, bare(dnsx.ErrNoName, addr)
	}
	names, err := s.r.LookupPTR(ctx, a)
	return names, bare(err, addr)
}

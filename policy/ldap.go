package policy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// fetchLDAP searches a directory, page by page. A search that did not end with success is not believed, nor is one
// that a limit of the server cut short.
func fetchLDAP(ctx context.Context, j job) (*content, error) {
	conn, err := dialLDAP(ctx, j.cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	l, left := newList(j.name, j.serves), int64(j.cfg.MaxSize)
	err = eachEntry(conn, j.cfg.LDAP, func(e *ldap.Entry) error {
		for _, a := range e.Attributes {
			for _, v := range a.Values {
				if left -= int64(len(v)); left < 0 {
					return errors.New("is larger than max_size")
				}
				if l.cell(v) != nil { // no client could name such a recipient either (mta.Path)
					l.odd++
				}
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("took longer than %v", j.cfg.Timeout)
	}
	if err != nil {
		return nil, err
	}
	return newContent(l, tag{}, time.Now())
}

func dialLDAP(ctx context.Context, cfg Source) (*ldap.Conn, error) {
	conf, err := trust(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.LDAP.URL)
	if err != nil {
		return nil, err
	}
	conf.ServerName = u.Hostname()
	network, address := "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"ldaps": "636"}[u.Scheme], "389"))
	if u.Scheme == "ldapi" {
		network, address = "unix", u.Path
	}
	raw, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "ldaps" {
		secure := tls.Client(raw, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		raw = secure
	}
	conn := ldap.NewConn(raw, u.Scheme == "ldaps")
	conn.SetTimeout(cfg.Timeout)
	conn.Start()
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // the library knows no context
	defer stop()
	if cfg.LDAP.StartTLS {
		err = conn.StartTLS(conf)
	}
	if err == nil {
		err = bind(conn, cfg.LDAP)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func bind(conn *ldap.Conn, cfg LDAP) error {
	if cfg.BindDN == "" {
		return conn.UnauthenticatedBind("")
	}
	password, err := readSecret(cfg.PasswordFile)
	if err != nil {
		return err
	}
	return conn.Bind(cfg.BindDN, password)
}

// eachEntry calls f for all entries that the filter chooses.
func eachEntry(conn *ldap.Conn, cfg LDAP, f func(*ldap.Entry) error) error {
	req := ldap.NewSearchRequest(cfg.Base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, cfg.Filter, cfg.Attributes, nil)
	var paging *ldap.ControlPaging
	if cfg.PageSize > 0 {
		paging = ldap.NewControlPaging(uint32(cfg.PageSize))
		req.Controls = append(req.Controls, paging)
	}
	for {
		res, err := conn.Search(req)
		if err != nil {
			return err
		}
		for _, e := range res.Entries {
			if err := f(e); err != nil {
				return err
			}
		}
		next, ok := ldap.FindControl(res.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if paging == nil || !ok || len(next.Cookie) == 0 {
			return nil
		}
		paging.SetCookie(next.Cookie)
	}
}

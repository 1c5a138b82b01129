package dnsx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// What a resolver said for certain. Every other error of a lookup is temporary.
var (
	ErrNotFound = errors.New("no such record")                      // NXDOMAIN or no data
	ErrNoName   = fmt.Errorf("no such name (%w)", ErrNotFound)      // NXDOMAIN: nothing at all has this name
	ErrNoData   = fmt.Errorf("name without data (%w)", ErrNotFound) // the name exists, without records of the asked type
)

// notFound is a certain "there is none": why is ErrNoName or ErrNoData.
func notFound(q question, why error) *net.DNSError {
	return &net.DNSError{UnwrapErr: why, Err: why.Error(), Name: q.String(), IsNotFound: true}
}

// trouble is "not known now".
func trouble(q question, server string, err error) *net.DNSError {
	return &net.DNSError{
		UnwrapErr: err, Err: err.Error(), Name: q.String(), Server: server,
		IsTimeout: isTimeout(err), IsTemporary: true,
	}
}

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

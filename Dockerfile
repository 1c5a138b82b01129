FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /understudy ./cmd/understudy \
 && mkdir -p /data/spool /data/run /data/etc

# Nothing but the binary and the certificates: a static program needs no distribution.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /understudy /understudy
COPY --from=build --chown=65532:65532 /data/spool /var/lib/understudy
COPY --from=build --chown=65532:65532 /data/run /run/understudy
USER 65532:65532
EXPOSE 2525
VOLUME /var/lib/understudy
ENTRYPOINT ["/understudy"]
CMD ["serve", "--config", "/etc/understudy/understudy.yaml"]

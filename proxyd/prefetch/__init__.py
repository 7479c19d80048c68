"""Prefetch: objects are fetched through the cache so that they are there before the crowd comes.

    HostQueue ──a host with room──► Job ──its requests──► Resource ──► Connection ──► the cache
                                     │                       │ probe, variants, ranges
                                     └── Tree: what a playlist names, fed to the queue a few at a time

Pure: `buckets`, `hosts`, `heads`, `hits`, `variants`, `ranges`, `urls`, `hls`, `dash`, `playlists`, `tree`,
`resource`. Only `connection` and `client` touch a socket.
"""

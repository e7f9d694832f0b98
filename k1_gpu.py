import sys, time, torch
from gossamer.kernels.block_tables import table_of_layout, BlockTables
def tables_of_layout(l,s,b,h): return BlockTables(table_of_layout(l,s,b,h),table_of_layout(l.mT,s,b,h))
from gossamer.kernels.hopper import block_masks
from gossamer.kernels.hopper.blocks_forward import blocks_forward
from gossamer.kernels.hopper.blocks_backward import blocks_backward
from gossamer.kernels.hopper.operands import Inputs, Results
d='cuda'
def ref(q,k,v,mask,scale,sinks):
    R=q.shape[1]//k.shape[1]
    k,v=k.repeat_interleave(R,1),v.repeat_interleave(R,1)
    s=(q@k.mT*scale).masked_fill(~mask,-torch.inf)
    lse=torch.logsumexp(s,-1)
    if sinks is not None: lse=torch.logaddexp(lse,sinks[:,None].expand_as(lse))
    fin=lse.masked_fill(lse==-torch.inf,0)
    p=torch.exp(s-fin[...,None])
    return p@v,lse
def case(name,B,H,G,Q,K,D,Dv,size,L,part=False,within=False,sinks=False,glse=True,dtype=torch.bfloat16,perbatch=False):
    torch.manual_seed(0)
    nr,nc=-(-Q//size),-(-K//size)
    lay=torch.rand(B if perbatch else 1,L,nr,nc,device=d)<0.4
    lay[:,:,min(1,nr-1)]=False; lay[:,:,:,nc//2]=False
    tabs=tables_of_layout(lay,size,B,H)
    full=lay.repeat_interleave(size,2).repeat_interleave(size,3)[:,:,:Q,:K].expand(B,L,Q,K)
    full=(full if L==H else full[:,:1]).expand(B,H,Q,K).clone()
    if part:
        T=3; tiles=(torch.rand(T,size,size,device=d)<0.5).to(torch.uint8)
        kind=torch.randint(-1,T,(1,L,nr,nc),device=d,dtype=torch.int32)
        def put(t,tl,kd):
            n=kd.shape[-1]; rows=torch.arange(t.blocks.numel(),device=d)//n
            tile=kd.reshape(-1,n).expand(-1,n)[rows,t.blocks.long()]
            return t._replace(tile=tile.int().contiguous(),tiles=tl)
        tabs=BlockTables(put(tabs[0],tiles,kind),put(tabs[1],tiles.mT.contiguous(),kind.mT))
        tabs=BlockTables(*map(block_masks.packed,tabs))
        m=torch.ones(1,L,nr*size,nc*size,dtype=torch.bool,device=d).view(1,L,nr,size,nc,size).permute(0,1,2,4,3,5).clone()
        for t in range(T): m[kind==t]=tiles[t].bool()
        m=m.permute(0,1,2,4,3,5).reshape(1,L,nr*size,nc*size)[:,:,:Q,:K]
        full&=(m if L==H else m[:,:1])
    w=None
    if within:
        w=torch.tensor([[7+11*b, min(Q,K)-5-70*b] for b in range(B)],device=d,dtype=torch.int32)
        for b in range(B):
            lo,hi=w[b].tolist(); full[b,:,:lo]=False; full[b,:,hi:]=False; full[b,:,:,:lo]=False; full[b,:,:,hi:]=False
    q=torch.randn(B,H,Q,D,device=d,dtype=dtype);k=torch.randn(B,G,K,D,device=d,dtype=dtype);v=torch.randn(B,G,K,Dv,device=d,dtype=dtype)
    sk=torch.randn(H,device=d) if sinks else None
    scale=D**-.5
    def ours():
        out=torch.full((B,H,Q,Dv),torch.nan,device=d,dtype=dtype);lse=torch.full((B,H,Q),torch.nan,device=d)
        blocks_forward(Inputs(q,k,v),tabs.by_queries,out,lse,scale=scale,within=w,sinks=sk)
        dq,dk,dv=(torch.full_like(x,torch.nan) for x in (q,k,v))
        gl=glse_.masked_fill(lse==-torch.inf,0) if glse else None
        blocks_backward(Inputs(q,k,v),Results(out,lse,go,gl),tabs,Inputs(dq,dk,dv),scale=scale,within=w)
        torch.cuda.synchronize()
        return out,lse,dq,dk,dv
    go=torch.randn(B,H,Q,Dv,device=d,dtype=dtype);glse_=torch.randn(B,H,Q,device=d)
    x=[t.float().requires_grad_() for t in (q,k,v)]
    ro,rl=ref(*x,full,scale,sk)
    vis=rl.detach()>-torch.inf
    loss=(ro*go.float()).sum()+((rl.masked_fill(~vis,0)*glse_).sum() if glse else 0)
    g=torch.autograd.grad(loss,x)
    f=ours(); f2=ours()
    errs=[]
    for n,a,b in zip(('o','lse','dq','dk','dv'),f,(ro,rl,*g)):
        if n=='lse':
            assert torch.equal(a==-torch.inf,~vis),'lse inf'; a=a[vis];b=b[vis]
        e=((a.float()-b).norm()/b.norm().clamp_min(1e-9)).item()
        mx=((a.float()-b).abs().max()/b.abs().max()).item()
        errs.append(f'{n} {e:.1e}/{mx:.1e}'+('' if e<8e-3 and mx<3e-2 else ' BAD'))
    same=all(torch.equal(a,b) for a,b in zip(f,f2))
    print(name,' '.join(errs),'same' if same else 'DIFFERS',flush=True)
def guarded(name,*a,**b):
    try: case(name,*a,**b)
    except Exception as e: print(name,'FAIL',type(e).__name__,str(e)[:300],flush=True); 
def correctness():
    c=guarded
    c('128 plain',2,2,2,640,640,128,128,128,2)
    c('128 gqa ends',2,4,2,600,700,128,128,128,4)
    c('128 masks within',2,2,2,600,600,128,128,128,2,part=True,within=True)
    c('128 sinks d80',1,4,1,520,520,80,80,128,4,sinks=True,dtype=torch.float16)
    c('128 d64',2,2,2,640,640,64,64,128,2,perbatch=True)
    c('64 plain',2,2,2,640,640,128,128,64,2)
    c('64 gqa by heads',2,4,2,600,600,128,128,64,1)
    c('64 d64',2,3,3,600,500,64,64,64,3)
    c('64 masks within',2,2,2,600,600,128,128,64,2,part=True,within=True)
    c('64 d64 masks within',2,2,2,600,600,64,64,64,2,part=True,within=True)
def timing():
    from triton.testing import do_bench
    def run(name,B,H,n,D,size,density=0.1):
        torch.manual_seed(0)
        lay=torch.rand(1,H,n//size,n//size,device=d)<density
        tabs=tables_of_layout(lay,size,B,H)
        q,k,v,go=(torch.randn(B,H,n,D,device=d,dtype=torch.bfloat16) for _ in range(4))
        out=torch.empty_like(q);lse=torch.empty(B,H,n,device=d);dq,dk,dv=(torch.empty_like(q) for _ in range(3))
        fl=lay.sum().item()*size*size*4*D*B
        f=lambda:blocks_forward(Inputs(q,k,v),tabs.by_queries,out,lse,scale=D**-.5)
        b=lambda:blocks_backward(Inputs(q,k,v),Results(out,lse,go,None),tabs,Inputs(dq,dk,dv),scale=D**-.5)
        from gossamer.kernels.hopper.blocks_backward import backward_queries,backward_keys
        aux=torch.empty(B,H,n,16,device=d,dtype=torch.bfloat16)
        bq=lambda:backward_queries(Inputs(q,k,v),Results(out,lse,go,None),tabs.by_queries,dq,aux,scale=D**-.5,within=None)
        bk=lambda:backward_keys(Inputs(q,k,v),go,aux,tabs.by_keys,(dk,dv),scale=D**-.5,within=None)
        def both(): f();b()
        t=[do_bench(x,warmup=100,rep=300,return_mode='median') for x in (f,bq,bk,both)]
        dense=do_bench(lambda:torch.nn.functional.scaled_dot_product_attention(q,k,v),warmup=50,rep=200,return_mode='median') if B==1 else float('nan')
        print(f'{name}: fwd {t[0]:.3f} ms {fl/t[0]/1e9:.0f} TF; dq {t[1]:.3f} ({1.5*fl/t[1]/1e9:.0f} hw); dkdv {t[2]:.3f} ({2*fl/t[2]/1e9:.0f} hw); f+b {t[3]:.3f} ms {3.5*fl/t[3]/1e9:.0f} TF; sdpa dense fwd {dense:.2f}',flush=True)
    run('B1 128 D128',1,16,16384,128,128)
    run('B4 128 D128',4,16,16384,128,128)
    run('B1 64 D128',1,16,16384,128,64)
    run('B1 128 D64',1,16,16384,64,128)
    run('B1 64 D64',1,16,16384,64,64)
globals()[sys.argv[1]]()
